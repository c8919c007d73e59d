"""The screen of a service that is started by hand, on a terminal of its own."""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

LONG = "x" * 60


def screen(columns: int, *options: str) -> str:
    """Start a service on a terminal of some columns; return what it shows, without colours, once it is all there."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, "-m", "vaeserve", "serve", "--host", "127.0.0.1", "--grpc-port", "0", "--http-port", "0"]
    # Not how wide the tests' own terminal is, which their runner may have said.
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm-256color"}
    process = subprocess.Popen([*command, *options], stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown, deadline = b"", time.monotonic() + 60
    try:
        while b"drains and stops." not in shown and time.monotonic() < deadline:
            if select.select([controller], [], [], 1)[0]:
                shown += os.read(controller, 65536)
            assert process.poll() is None, shown.decode()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        os.close(controller)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")


def facts(shown: str) -> dict[str, str]:
    """Return the screen's lines by what they are of."""
    told = shown[shown.index("vaeserve 0") :]
    return dict(re.findall(r"^(\S+) +(.+?) *$", told, re.MULTILINE))


def test_the_screen_says_what_is_served_where_and_how(two_bundles: Any) -> None:
    """Models, versions, ports, callers, provider, threads and limits are on it, as they are."""
    repository = two_bundles[0].path.parent.parent
    options = ("--set", "runtime.runners=3", "--set", "limits.queue_rows=1234", "--set", "admin.enabled=true")
    told = facts(screen(120, "--repository", str(repository), *options))
    assert re.fullmatch(r"2 +3 numeric +p <= 0.01", told["table3"])
    assert re.fullmatch(r"127\.0\.0\.1:\d+ +plain text", told["gRPC"])
    assert re.fullmatch(r"127\.0\.0\.1:\d+ +/metrics /livez /readyz", told["HTTP"])
    assert told["callers"] == "anyone, for anything"
    assert told["services"] == "VaeService, ModelAdmin, Open Inference, health, reflection"
    assert told["tracing"] == "off"
    assert told["repository"] == f"{repository}, looked at every 5 s"
    assert re.fullmatch(r"cpu, onnxruntime \d+\.\d+\.\d+", told["provider"])
    assert told["threads"] == "3 runners, of one ONNX Runtime thread each; 1 event loop"
    assert told["batches"] == "up to 256 rows, waited for up to 4 ms"
    assert told["request"] == "up to 100,000 rows, 64 MiB"
    assert told["queue"] == "up to 1,234 rows, 256 MiB, of a model"
    assert told["connections"] == "up to 1,000, each of up to 256 calls at once"
    assert told["drain"] == "up to 30 s"


def test_the_screen_says_what_protects_it(two_bundles: Any, tmp_path: Path, authority: Any) -> None:
    """TLS, client certificates and callers are on it where they are set."""
    authority.issue().write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    (tmp_path / "callers.toml").write_text('[job]\nscopes = ["infer"]\ncertificates = ["job"]\n')
    settings = {
        "tls.certificate": "tls.crt",
        "tls.key": "tls.key",
        "tls.client_ca": "ca.crt",
        "access.callers": "callers.toml",
    }
    options = [part for key, name in settings.items() for part in ("--set", f"{key}={tmp_path / name}")]
    repository = str(two_bundles[0].path.parent.parent)
    told = facts(screen(120, "--repository", repository, *options, "--set", 'access.anonymous=["metrics"]'))
    assert told["gRPC"].endswith("TLS, with certificates of clients")
    assert told["callers"].startswith(f"anyone for metrics, else those of {tmp_path}"[:100])


@pytest.mark.parametrize("columns", [80, 120])
def test_no_line_of_the_screen_is_wider_than_the_terminal(two_bundles: Any, tmp_path: Path, columns: int) -> None:
    """Long names and paths are cut short; versions and verdicts never are."""
    folder = tmp_path / LONG / LONG
    for name, version in ((LONG, "123456789012345678"), ("fraud", "7")):
        shutil.copytree(two_bundles[0].path, folder / name / version)
    shown = screen(columns, "--repository", str(folder))
    lines = shown[shown.index("vaeserve 0") :].splitlines()
    assert max(map(len, lines)) <= columns
    (row,) = (line for line in lines if "123456789012345678" in line)
    assert "p <= 0.01" in row
    assert (LONG in row) == (columns == 120)
    assert max(map(len, lines)) > columns - 5  # and what there is room for is there
    assert facts(shown)["repository"].startswith(str(tmp_path)[:40])


def test_where_nobody_looks_there_is_no_screen(two_bundles: Any, tmp_path: Path) -> None:
    """Without a terminal there are JSON lines alone."""
    from vaeserve.local import serve_locally

    with serve_locally(two_bundles[0].path.parent.parent, log=tmp_path / "log"):
        pass
    assert all(line.startswith("{") for line in (tmp_path / "log").read_text().splitlines())
