"""README.md, followed to the letter."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vaeserve.client import Client
from vaeserve.errors import UnavailableError

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(language: str, containing: str) -> str:
    """Return the code block that contains a text."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = (code for code in blocks if containing in code)
    return found


@pytest.mark.slow
def test_the_ten_lines_give_a_score(tmp_path: Path) -> None:
    """The commands of README's ten lines train, export and serve; its Python prints scores; its job ends well."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    *commands, serve = block("sh", "vaeserve serve").replace(". .venv/bin/activate\n", "").strip().splitlines()
    for command in commands:
        subprocess.run(command.split(), check=True, cwd=tmp_path, env=environment, timeout=120)
    with subprocess.Popen(serve.split(), cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as service:
        try:
            _wait_for("localhost:8001", service)
            code = block("python", "client.score")
            printed = subprocess.run(
                [sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True, timeout=60
            ).stdout
        finally:
            service.terminate()
    assert service.returncode == 0
    assert "Attribution(feature=" in printed
    job = block("sh", "vaeserve score").strip()
    subprocess.run(job.split(), check=True, cwd=tmp_path, env=environment, timeout=60)
    assert (tmp_path / "scores" / "_SUCCESS").exists()


def _wait_for(target: str, service: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert service.poll() is None
        try:
            with Client(target, timeout=2) as client:
                if client.health():
                    return
        except UnavailableError:
            time.sleep(0.1)
    raise AssertionError(f"{target} doesn't serve")


def test_every_link_leads_somewhere() -> None:
    """Every relative link of the project's pages leads to a file or folder that is there."""
    root = Path(__file__).parents[2]
    parts = {page: page.relative_to(root).parts for page in root.rglob("*.md")}
    pages = [page for page, names in parts.items() if not any(name.startswith(".") for name in names)]
    assert len(pages) > 10
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.relative_to(root)}: {link}"
