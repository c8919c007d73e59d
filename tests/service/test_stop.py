"""How a service stops while something would hold it."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Seconds that a test has for what would otherwise take for ever.
STOP_S = 60

# `vaeserve serve`, whose repository is a volume that hangs: a load says that it began, and doesn't end.
HANGING = """
import sys, threading
from vaeserve.cli import main
from vaeserve_service.loading import Loader

def hang(*_):
    print("loading", flush=True)
    threading.Event().wait()

Loader.load = hang
main()
"""


@contextmanager
def hanging(folder: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a service of the repository `folder/bundles`, whose loads hang; it logs to `folder/log`."""
    (folder / "bundles").mkdir(exist_ok=True)
    command = [
        *(sys.executable, "-c", HANGING, "serve", "--repository", str(folder / "bundles")),
        *("--host", "127.0.0.1", "--grpc-port", "0", "--http-port", "0", "--set", "drain.grace_s=0", *options),
    ]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def add(folder: Path, name: str) -> None:
    """Let what looks like a model's first version appear."""
    (folder / "bundles" / name / "1").mkdir(parents=True)
    (folder / "bundles" / name / "1" / "manifest.json").touch()


def loads(process: "subprocess.Popen[str]") -> bool:
    """Wait until a load has begun."""
    assert process.stdout
    return process.stdout.readline() == "loading\n"


def events(folder: Path) -> list[str]:
    """Return what a service logged."""
    return [json.loads(line)["event"] for line in (folder / "log").read_text().splitlines()]


def test_a_stop_while_the_first_models_load_is_one_at_once(tmp_path: Path) -> None:
    """On SIGTERM a service whose first load hangs exits with 0, without having served."""
    add(tmp_path, "fraud")
    with hanging(tmp_path) as process:
        assert loads(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0
    assert events(tmp_path) == ["stopped before it served"]


def test_a_load_that_hangs_does_not_hold_the_stop(tmp_path: Path) -> None:
    """On SIGTERM a service that serves drains and exits with 0, though a later load hangs."""
    options = ("--set", 'repository.models=["fraud"]', "--set", "repository.poll_s=0.05")
    with hanging(tmp_path, *options) as process:
        while '"serving"' not in (tmp_path / "log").read_text():
            assert process.poll() is None
        add(tmp_path, "fraud")
        assert loads(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0
    assert events(tmp_path)[-2:] == ["draining", "stopped"]
