"""Settings that can't be: named with what could be, before a port opens."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vaeserve.config import load, parse_overrides
from vaeserve.errors import ConfigError
from vaeserve_service.config import ServiceConfig


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("batching.max_row=1", "batching.max_row: no such setting; did you mean max_rows?"),
        ("drain.colour=1", "drain.colour: no such setting; expected one of lame_duck_s, grace_s"),
        ("bathing.max_rows=1", "bathing: no such setting; did you mean batching?"),
        ("colour.red=1", "colour: no such setting; expected one of repository, server, .*, log, tracing"),
        ("server.grpc_port=http", "server.grpc_port: 'http'; Input should be a valid integer"),
        ("server.grpc_port=70000", "server.grpc_port: 70000; Input should be less than or equal to 65535"),
        ("batching.max_rows=0", "batching.max_rows: 0; Input should be greater than or equal to 1"),
        ("drain.grace_s=-1", "drain.grace_s: -1; Input should be greater than or equal to 0"),
        ("drain.grace_s=nan", "drain.grace_s: nan; Input should be a finite number"),
        ("drain.grace_s=soon", "drain.grace_s: 'soon'; Input should be a valid number"),
        ("admin.enabled=perhaps", "admin.enabled: 'perhaps'; Input should be a valid boolean"),
        ("runtime.device=tpu", "runtime.device: 'tpu'; Input should be 'cpu' or 'cuda'"),
        ("log.level=loud", "log.level: 'loud'; Input should be 'debug', 'info', 'warning' or 'error'"),
        ("log.calls=some", "log.calls: 'some'; Input should be 'none', 'failed' or 'all'"),
        ("log.format=xml", "log.format: 'xml'; Input should be 'auto', 'json' or 'text'"),
        ('access.anonymous=["root"]', "access.anonymous.0: 'root'; Input should be 'infer', 'admin', 'metrics' or"),
        ("repository.models=fraud", "repository.models: 'fraud'; Input should be a valid tuple"),
        ("repository.versions={a = [0]}", "repository.versions.a.0: 0; Input should be greater than or equal to 1"),
        ("batching=1", "--set batching=1: expected section.key=value"),
    ],
)
def test_a_flag_that_cannot_be_is_named_with_what_could(flag: str, message: str) -> None:
    """An unknown section or key, a wrong type, value or range: the key, the value and what was expected."""
    with pytest.raises(ConfigError, match=message.replace("[", "\\[")):
        load(ServiceConfig, overrides=parse_overrides(["repository.path=.", flag]))


def test_files_and_the_environment_are_held_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of a file is named with the file, a variable's as the setting that it is."""
    file = tmp_path / "service.toml"
    file.write_text('[repository]\npath = "."\n[limits]\nqueue_row = 1\n')
    with pytest.raises(ConfigError, match="limits.queue_row: no such setting .from .*service.toml.; did you mean"):
        load(ServiceConfig, file=file)
    monkeypatch.setenv("VAESERVE_REPOSITORY_PATH", ".")
    monkeypatch.setenv("VAESERVE_LIMITS_QUEUE_ROWS", "many")
    with pytest.raises(ConfigError, match="limits.queue_rows: 'many'; Input should be a valid integer"):
        load(ServiceConfig)
    monkeypatch.setenv("VAESERVE_LIMITS_QUEUE_ROWS", "5")
    monkeypatch.setenv("VAESERVE_LIMITS_QUEUE_ROW", "5")
    with pytest.raises(ConfigError, match="limits.queue_row: no such setting; did you mean queue_rows?"):
        load(ServiceConfig)


@pytest.mark.parametrize(
    ("options", "variables", "message"),
    [
        (["--set", "batching.max_rows=0"], {}, "batching.max_rows: 0; Input should be greater than or equal to 1"),
        (["--set", "tls.key=no.pem"], {}, "tls.certificate"),
        (
            [],
            {"VAESERVE_LOG_LEVEL": "loud"},
            "log.level: 'loud'; Input should be 'debug', 'info', 'warning' or 'error'",
        ),
    ],
)
def test_what_cannot_be_exits_2_before_a_port_opens(
    tmp_path: Path, options: list[str], variables: dict[str, str], message: str
) -> None:
    """Where a port is taken too, it is the setting that is told of: none was opened before."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "vaeserve", "serve", "--repository", str(tmp_path), "--host", "127.0.0.1"]
        done = subprocess.run(
            [*command, "--grpc-port", port, "--http-port", port, *options],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | variables,
        )
    assert done.returncode == 2
    assert message in done.stderr
    assert "can't listen" not in done.stderr
    assert "Traceback" not in done.stderr
