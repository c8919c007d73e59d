"""The page of concepts: its numbers are the measured ones, and its pictures are there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.figures import CONCEPTS, FIGURES, MEASURED, filled

LARGEST = 1_500_000
MEASURED_AGAIN = {"elbo": 2.0, "kl": 2.0, "reconstruction_error": 0.02, "explained": 0.05, "auroc": 0.05}


def test_every_number_is_the_measured_one() -> None:
    """Filling in the page's numbers and tables anew changes nothing of it, and each has its value."""
    page = CONCEPTS.read_text()
    assert filled(page, json.loads(MEASURED.read_text())) == page
    assert page.count("<!--=") > 40
    assert "--><!--/-->" not in page


def test_a_number_that_drifted_is_found() -> None:
    """A number that isn't what was measured is replaced, a figure that nobody measured refused."""
    assert filled("<!--=a/b:.1f-->7<!--/--> nats", {"a": {"b": 3.14}}) == "<!--=a/b:.1f-->3.1<!--/--> nats"
    table = {"a": {"table": "| new |\n"}}
    assert filled("<!--table a-->\nold\n<!--/-->", table) == "<!--table a-->\n\n| new |\n\n<!--/-->"
    with pytest.raises(KeyError):
        filled("<!--=a/c:.1f-->7<!--/-->", {"a": {"b": 3.14}})


def test_no_line_begins_with_a_number() -> None:
    """A line that began with one would be taken for HTML, and its Markdown stay as it is."""
    assert not re.search(r"^\s*<!--=", CONCEPTS.read_text(), re.MULTILINE)


def test_every_picture_is_there_and_described() -> None:
    """Pictures have words for who can't see them, none is missing or left over, and together they are small."""
    shown = re.findall(r"!\[(.*?)\]\(figures/(.*?)\)", CONCEPTS.read_text())
    assert all(len(words) > 10 for words, _ in shown)
    files = {path.name: path for path in FIGURES.glob("*.svg")}
    assert {name for _, name in shown} == set(files)
    assert sum(path.stat().st_size for path in files.values()) < LARGEST
    for path in files.values():
        svg = path.read_text()
        assert "aria-label" in svg
        assert "prefers-color-scheme: dark" in svg
        assert not re.search(r'(href|src)="(?!#|data:)', svg)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_numbers_are_measured_again(tmp_path: Path) -> None:
    """The table that the page shows comes out again, within what another machine may change."""
    flags = ["--compare", "autoencoder", "--out", str(tmp_path / "sweep"), "--device", "cpu"]
    subprocess.run([sys.executable, "-m", "vaeserve", "sweep", "digits", *flags], check=True, capture_output=True)
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["rows"]
    before = json.loads(MEASURED.read_text())["digits"]
    for row in rows:
        assert row["verdict"] == before[row["name"]]["verdict"]
        for name, tolerance in MEASURED_AGAIN.items():
            if row[name] is not None:
                assert row[name] == pytest.approx(before[row["name"]][name], abs=tolerance), (row["name"], name)
