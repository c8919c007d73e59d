"""docs/client.md: its recipes run as they are on the page, and so does its command for other languages."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.conftest import Authority
from vaeserve.connection import PREFIX
from vaeserve.local import serve_locally
from vaeserve_service.callers import hashed, new_token

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "client.md").read_text()
SECTIONS = dict(zip(*[iter(re.split(r"^## (.*)\n", PAGE, flags=re.MULTILINE)[1:])] * 2, strict=True))
RECIPES = {title: text for title, text in SECTIONS.items() if title[0].isdigit()}
TLS = "9. TLS and tokens"


def blocks(text: str, language: str) -> list[str]:
    """Return a section's blocks of code."""
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return found


def vaeserve(*arguments: object, cwd: Path) -> None:
    """Run a command."""
    command = [sys.executable, "-m", "vaeserve", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's model, trained for a moment, and the files that the recipe of TLS reads."""
    folder = tmp_path_factory.mktemp("recipes")
    settings = ["--set", "optimizer.max_steps=60", "--set", "optimizer.evaluate_every=20"]
    vaeserve("train", "breast-cancer", "--out", "run", "--preset", "fast", *settings, cwd=folder)
    vaeserve("export", "run", "--repository", "models", "--name", "tumours", cwd=folder)
    authority, token = Authority("authority"), new_token()
    (folder / "ca.crt").write_bytes(authority.pem)
    authority.issue().write(folder)
    mine = authority.issue("me")
    (folder / "me.crt").write_bytes(mine.chain)
    (folder / "me.key").write_bytes(mine.key)
    (folder / "token").write_text(token + "\n")
    (folder / "callers.toml").write_text(f'[me]\nscopes = ["infer"]\ntokens = ["{hashed(token)}"]\n')
    return folder


@pytest.fixture(scope="module")
def targets(folder: Path) -> Iterator[dict[bool, str]]:
    """The addresses of a service without TLS, and of one with."""
    secure = {
        "tls.certificate": folder / "tls.crt",
        "tls.key": folder / "tls.key",
        "tls.client_ca": folder / "ca.crt",
        "access.callers": folder / "callers.toml",
    }
    options = [part for key, value in secure.items() for part in ("--set", f"{key}={value}")]
    with (
        serve_locally(folder / "models", log=folder / "plain.log") as plain,
        serve_locally(folder / "models", log=folder / "tls.log", options=options) as tls,
    ):
        yield {False: plain.target, True: tls.target}


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_runs_as_it_is(title: str, folder: Path, targets: dict[bool, str]) -> None:
    """On the page's own words, but for the port; it ends well, and warns of nothing."""
    (code,) = blocks(RECIPES[title], "python")
    target = targets[title == TLS].replace("127.0.0.1", "localhost")
    assert "localhost:8001" in code
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code.replace("localhost:8001", target)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    if title.startswith("8."):
        assert "mend the call: " in done.stdout


def test_there_are_ten_recipes() -> None:
    """One by one."""
    assert [int(title.partition(".")[0]) for title in RECIPES] == list(range(1, 11))


@pytest.mark.parametrize(
    ("tool", "made"), [("protoc", ["vae.pb.h", "*.java"]), ("python", ["vae_pb2.py", "vae_pb2_grpc.py"])]
)
def test_the_wire_is_made_into_stubs(tool: str, made: list[str], tmp_path: Path) -> None:
    """The page's commands write what they say, with the compiler of each."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} isn't here: it comes with Debian's protobuf-compiler")
    (code,) = (code for code in blocks(SECTIONS["Other languages"], "sh") if f"\n{tool} " in code)
    (tmp_path / "protos").symlink_to(ROOT / "protos")
    for line in code.strip().splitlines():
        program, *arguments = line.split()
        subprocess.run([sys.executable if program == "python" else program, *arguments], cwd=tmp_path, check=True)
    for name in made:
        assert list((tmp_path / "generated").rglob(name))
