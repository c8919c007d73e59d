"""The page of a sweep, as a browser shows it."""

import subprocess
import sys
from pathlib import Path

import pytest
from selenium import webdriver

from tests.system.test_report import CLIPPED, FIGURES, OVERFLOWING, UNSAID, browser  # noqa: F401 - a fixture
from tests.training.report.sound import check


@pytest.mark.slow
@pytest.mark.parametrize("data", ["digits", "breast-cancer"])
def test_a_browser_shows_the_sweeps_page_whole(
    browser: webdriver.Chrome,  # noqa: F811
    tmp_path: Path,
    data: str,
) -> None:
    """Of images and of a table, at phone and desktop width: no console error, nothing clipped, all described."""
    flags = ["--betas", "0.01,1,30", "--compare", "autoencoder", "--preset", "fast", "--device", "cpu"]
    command = [sys.executable, "-m", "vaeserve", "sweep", data, "--out", str(tmp_path / "sweep"), *flags]
    subprocess.run([*command, "--set", "optimizer.max_steps=200"], check=True, capture_output=True, timeout=600)
    page = tmp_path / "sweep" / "report" / "index.html"
    check(page.read_text())
    for width in (360, 1280):
        for scheme in ("light", "dark"):
            shape = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            browser.get(page.as_uri())
            where = (data, width, scheme)
            assert browser.get_log("browser") == [], where  # type: ignore[no-untyped-call]
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, where
            assert browser.execute_script(OVERFLOWING) == [], where
            assert browser.execute_script(UNSAID) == 0, where
            assert browser.execute_script(FIGURES) >= 15, where
            assert browser.execute_script(CLIPPED) == [], where
