"""Pages: one file that needs nothing else, escaped, and written whole."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from vaeserve.errors import OperatorError
from vaeserve_training.report import page as pages
from vaeserve_training.report.page import FILE, Facts, Note, Page, Section, Table, write
from vaeserve_training.report.picture import Picture

HOSTILE = "<script>alert(\"1\")</script> & 'x'"


def page(*names: str) -> Page:
    """Return a page with pictures of some names, and hostile words everywhere."""
    pictures = tuple(Picture(name, HOSTILE, f'<svg role="img" aria-label="{name}"></svg>', Figure()) for name in names)
    parts = (
        pages.Figure(HOSTILE, HOSTILE, pictures),
        Table(HOSTILE, (HOSTILE, "n"), ((HOSTILE, 12345), ("a", 0.25)), HOSTILE),
        Facts({HOSTILE: HOSTILE}),
        Note(HOSTILE),
    )
    return Page(HOSTILE, HOSTILE, (Section("one", HOSTILE, HOSTILE, parts),), Facts({"rows": HOSTILE}), HOSTILE)


def test_words_of_others_are_escaped_everywhere() -> None:
    """No word of a title, caption, name, cell or note becomes markup."""
    html = page("one").html()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 12
    assert ">12,345<" in html
    assert ">0.25<" in html


def test_a_page_and_its_pictures_are_written_together(tmp_path: Path) -> None:
    """The folder has the page and two files for each picture."""
    path = write(page("one", "two"), tmp_path / "report")
    assert path == tmp_path / "report" / FILE
    assert sorted(file.name for file in path.parent.iterdir()) == [FILE, "one.png", "one.svg", "two.png", "two.svg"]


def test_a_report_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    """Pictures that only the older page had are gone, and a person's own file stays."""
    out = tmp_path / "report"
    write(page("one", "two"), out)
    (out / "notes.txt").write_text("mine")
    write(page("two", "three"), out)
    names = {file.name for file in out.iterdir()}
    assert names == {FILE, "notes.txt", "two.png", "two.svg", "three.png", "three.svg"}
    assert 'data-picture="three"' in (out / FILE).read_text()


@pytest.mark.parametrize("what", ["folder", "page", "file", "binary"])
def test_what_is_no_report_is_refused_and_left_alone(tmp_path: Path, what: str) -> None:
    """A folder of something else, a page of somebody else's, and a file are named and keep their bytes."""
    out = tmp_path / "out"
    if what == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / ("mine" if what == "folder" else FILE)).write_bytes(b"\xff\xfe" if what == "binary" else b"mine")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(OperatorError, match="out: exists, and isn't a page that vaeserve wrote; choose another --out"):
        write(page("one"), out)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A folder below a file can't be made, and that is said."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OperatorError, match="file/report"):
        write(page("one"), tmp_path / "file" / "report")
    assert (tmp_path / "file").read_text() == "mine"
