"""`vaeserve report`, as a person runs it and as a browser shows it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from tests.training.report.sound import check

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Those that keep Chromium from asking the network for anything.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
OVERFLOWING = """
const width = document.documentElement.clientWidth;
return [...document.querySelectorAll("body *")]
  .filter(e => !e.closest(".scroll") && e.getBoundingClientRect().right > width + 1)
  .map(e => e.tagName + " " + e.className + " " + e.getBoundingClientRect().right);
"""
UNSAID = """
return [...document.querySelectorAll("svg, img")]
  .filter(e => !(e.getAttribute("aria-label") || e.getAttribute("alt"))).length;
"""
FIGURES = 'return document.querySelectorAll("figure svg").length'
# What a person who looks for words in a picture would find clipped at its edge.
CLIPPED = """
return [...document.querySelectorAll("figure svg")].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  const past = t => Math.max(box.left - t.left, t.right - box.right, box.top - t.top, t.bottom - box.bottom) > 2;
  return [...svg.querySelectorAll("text")]
    .filter(text => !text.closest("[clip-path]") && past(text.getBoundingClientRect()))
    .map(text => svg.getAttribute("aria-label").slice(0, 40) + ": " + text.textContent);
});
"""


def vaeserve(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the command line."""
    command = [sys.executable, "-m", "vaeserve", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, env=os.environ)


@pytest.mark.slow
def test_a_run_and_its_bundle_have_reports(models: Any, tmp_path: Path) -> None:
    """The command prints the page's path, replaces an older page, and shows a bundle on rows that it is given."""
    run, bundle = models.runs["table7"].path, models.bundles["table7"].path
    rows = tmp_path / "rows.csv"
    rows.write_text("label," + ",".join(f"c{i}" for i in range(7)) + "\n" + "".join(
        f"{int(row % 3 == 0)}," + ",".join(f"{row * i % 5 + 10}.5" for i in range(7)) + "\n" for row in range(60)
    ))  # fmt: skip
    for arguments in ([run], [run], [bundle], [bundle, "--data", rows, "--label", "label"]):
        done = vaeserve("report", *arguments, "--out", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{tmp_path / 'out' / 'index.html'}\n"
        check((tmp_path / "out" / "index.html").read_text())
    assert "AUROC" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.slow
def test_what_cannot_be_reported_is_said_in_a_line(models: Any, tmp_path: Path) -> None:
    """No run, an --out of something else, rows that don't fit and labels of no rows end with 2 and leave nothing."""
    run = models.runs["table7"].path
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    (tmp_path / "rows.csv").write_text("a\n1\n")
    for arguments, said in (
        ([tmp_path / "mine"], "not a run"),
        ([run, "--out", tmp_path / "mine"], "isn't a page that vaeserve wrote"),
        ([run, "--out", tmp_path / "new", "--data", tmp_path / "rows.csv"], "column"),
        ([run, "--out", tmp_path / "new", "--label", "a"], "expected --data"),
    ):
        done = vaeserve("report", *arguments)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "rows.csv"]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """A headless Chromium that notes what its console says."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixed", "conv"])
def test_a_browser_shows_the_page_whole(models: Any, browser: webdriver.Chrome, tmp_path: Path, kind: str) -> None:
    """At phone and desktop width, light and dark: no console error, nothing past the edge, every figure described."""
    done = vaeserve("report", models.runs[kind].path, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    backgrounds = set()
    for width in (360, 1280):
        for scheme in ("light", "dark"):
            shape = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            browser.get((tmp_path / "out" / "index.html").as_uri())
            where = (kind, width, scheme)
            assert browser.get_log("browser") == [], where  # type: ignore[no-untyped-call]
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, where
            assert browser.execute_script(OVERFLOWING) == [], where
            assert browser.execute_script(UNSAID) == 0, where
            assert browser.execute_script(FIGURES) >= 10, where
            assert browser.execute_script(CLIPPED) == [], where
            backgrounds.add(browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor"))
    assert len(backgrounds) == 2
