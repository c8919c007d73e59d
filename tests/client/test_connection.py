"""Whom a client trusts, who it is, and what it tells nobody."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.service.conftest import Authority
from vaeserve import AsyncClient, Client, Tls
from vaeserve.connection import Connection, is_local
from vaeserve.errors import ConfigError, InvalidInputError, ServerError, UnavailableError
from vaeserve.local import LocalService, serve_locally
from vaeserve_service.callers import hashed

TOKEN = "vaeserve_" + "k" * 40
OTHER = "vaeserve_other"
ROW = np.zeros((1, 7), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificates of an authority: the service's, `tls`, and a client's, `me`."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority("authority")
    (folder / "ca.crt").write_bytes(authority.pem)
    (folder / "other.crt").write_bytes(Authority("other").pem)
    authority.issue().write(folder)
    mine = authority.issue("me", dns=["me.example"])
    (folder / "me.crt").write_bytes(mine.chain)
    (folder / "me.key").write_bytes(mine.key)
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "callers.toml").write_text(
        f'[batch]\nscopes = ["infer"]\ntokens = ["{hashed(TOKEN)}"]\n'
        '[me]\nscopes = ["infer"]\ncertificates = ["me.example"]\n'
    )
    return folder


def settings(folder: Path, **more: object) -> list[str]:
    """Return the service's flags."""
    given = {
        "repository.models": '["table7"]',
        "tls.certificate": folder / "tls.crt",
        "tls.key": folder / "tls.key",
        "access.callers": folder / "callers.toml",
        **more,
    }
    return [part for key, value in given.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def guarded(models: Any, folder: Path) -> Iterator[LocalService]:
    """A service with TLS that asks for certificates, and knows a token."""
    options = settings(folder, **{"tls.client_ca": folder / "ca.crt"})
    with serve_locally(models.repository, log=folder / "log", options=options) as service:
        yield service


def test_a_certificate_or_a_token_gets_in(guarded: LocalService, folder: Path, monkeypatch: Any) -> None:
    """By argument and by environment; one whom the service doesn't know is told so, and nobody trusts a stranger."""
    mine: dict[str, Any] = {"ca": folder / "ca.crt", "certificate": folder / "me.crt", "key": folder / "me.key"}
    named = Tls(**mine, server_name="localhost")
    with Client(guarded.target, tls=named) as client:
        assert len(client.score("table7", ROW)) == 1
    local = guarded.target.replace("127.0.0.1", "localhost")
    with Client(local, tls=Tls(**mine), token=TOKEN) as client:
        assert len(client.score("table7", ROW)) == 1
    with Client(local, tls=Tls(**mine), token=OTHER) as client, pytest.raises(ServerError, match="credentials"):
        client.score("table7", ROW)
    stranger = Tls(**(mine | {"ca": folder / "other.crt"}))
    with Client(local, tls=stranger, retry=False) as client, pytest.raises(UnavailableError):
        client.score("table7", ROW)
    with Client(local, retry=False) as client, pytest.raises(UnavailableError):
        client.score("table7", ROW)
    for name, path in mine.items():
        monkeypatch.setenv(f"VAESERVE_CLIENT_TLS_{name.upper()}", str(path))
    monkeypatch.setenv("VAESERVE_CLIENT_TOKEN_FILE", str(folder / "token"))
    with Client(local) as client:
        assert len(client.score("table7", ROW)) == 1


async def test_the_async_client_gets_in_too(guarded: LocalService, folder: Path) -> None:
    """The same arguments are the same connection."""
    tls = Tls(folder / "ca.crt", folder / "me.crt", folder / "me.key", server_name="localhost")
    async with AsyncClient(guarded.target, tls=tls, token=TOKEN) as client:
        assert len(await client.score("table7", ROW)) == 1
    async with AsyncClient(guarded.target, tls=tls, token=OTHER) as client:
        with pytest.raises(ServerError, match="credentials"):
            await client.score("table7", ROW)


def run(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m vaeserve`."""
    command = [sys.executable, "-m", "vaeserve", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment
    )


def test_commands_take_the_connection_as_flags(guarded: LocalService, folder: Path, tmp_path: Path) -> None:
    """`health` and `score --server` speak TLS, and show a certificate and a token."""
    local = guarded.target.replace("127.0.0.1", "localhost")
    tls = ["--tls-ca", folder / "ca.crt", "--tls-certificate", folder / "me.crt", "--tls-key", folder / "me.key"]
    done = run("health", local, *tls)
    assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
    assert run("health", local, "--timeout", 5).returncode == 1
    names = ",".join(f"c{index}" for index in range(7))
    np.savetxt(tmp_path / "rows.csv", np.zeros((20, 7)), delimiter=",", header=names, comments="")
    score = ["score", tmp_path / "rows.csv", "--server", local, "--model", "table7"]
    done = run(*score, *tls, "--token-file", folder / "token", "--out", tmp_path / "known")
    assert done.returncode == 0, done.stderr
    (folder / "wrong").write_text("wrong")
    done = run(*score, *tls, "--token-file", folder / "wrong", "--out", tmp_path / "unknown")
    assert (done.returncode, "wrong" in done.stderr) == (2, False)
    assert "credentials: none that the service knows" in done.stderr
    missing = run("health", local, "--tls-ca", folder / "none.crt")
    assert missing.returncode == 2
    assert "none.crt: No such file or directory; expected a PEM file" in missing.stderr


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("localhost:8001", True),
        ("127.0.0.1:8001", True),
        ("127.8.9.1:8001", True),
        ("[::1]:8001", True),
        ("::1", True),
        ("unix:/run/vaeserve.sock", True),
        ("dns:///localhost:8001", True),
        ("ipv4:127.0.0.1:8001", True),
        ("ipv4:127.0.0.1:8001,10.0.0.1:8001", False),
        ("ipv6:[::1]:8001", True),
        ("dns:///vaeserve.example:8001", False),
        ("dns://127.0.0.1/vaeserve.example:8001", False),
        ("localhost.example:8001", False),
        ("127.0.0.1.example:8001", False),
        ("10.0.0.1:8001", False),
        ("[fe80::1]:8001", False),
        ("0.0.0.0:8001", False),
        ("xds:///vaeserve", False),
        ("localhost", True),
    ],
)
def test_a_token_crosses_no_network_as_plain_text(target: str, local: bool) -> None:
    """To another machine it takes TLS, or the word that something else encrypts."""
    assert is_local(target) is local
    Connection(target, token=TOKEN, allow_plaintext=True)
    Connection(target, Tls(), TOKEN)
    if local:
        Connection(target, token=TOKEN)
    else:
        with pytest.raises(ConfigError, match="as plain text; expected tls, or allow_plaintext=True") as refused:
            Connection(target, token=TOKEN)
        assert TOKEN not in str(refused.value)


def test_a_token_is_shown_to_nobody(tmp_path: Path) -> None:
    """It is in no repr and no error, whatever is wrong with it."""
    connection = Connection("localhost:1", token=TOKEN)
    assert TOKEN not in repr(connection)
    for bad in (f"{TOKEN}\n", f"{TOKEN} x", f"{TOKEN}é", "", TOKEN.encode()):
        with pytest.raises(ConfigError, match="token: not one that can be sent; expected printable ASCII") as refused:
            Client("localhost:1", token=bad)  # type: ignore[arg-type]
        assert TOKEN not in str(refused.value)
    with Client("localhost:1", token=TOKEN) as client:
        assert TOKEN not in repr(client)
    with pytest.raises(ConfigError, match="none: No such file or directory; expected a file with the token"):
        Connection.given("localhost:1", None, None, environment={"VAESERVE_CLIENT_TOKEN_FILE": str(tmp_path / "none")})


def test_the_environment_is_read_where_no_argument_is_given() -> None:
    """Each of its variables has its effect, arguments beat them, and what can't be is named."""
    given = Connection.given("localhost:1", None, None, environment={})
    assert given == Connection("localhost:1")
    assert Connection.given("h:1", None, None, environment={"VAESERVE_CLIENT_TLS": "true"}).tls == Tls()
    environment = {
        "VAESERVE_CLIENT_TLS_CA": "ca.pem",
        "VAESERVE_CLIENT_TLS_CERTIFICATE": "me.pem",
        "VAESERVE_CLIENT_TLS_KEY": "me.key",
        "VAESERVE_CLIENT_TLS_SERVER_NAME": "other",
        "VAESERVE_CLIENT_TOKEN": TOKEN,
        "VAESERVE_CLIENT_ALLOW_PLAINTEXT": "1",
    }
    full = Connection.given("h:1", None, None, environment=environment)
    assert full == Connection("h:1", Tls("ca.pem", "me.pem", "me.key", "other"), TOKEN, allow_plaintext=True)
    assert ("grpc.ssl_target_name_override", "other") in full.options
    assert Connection.given("h:1", Tls(), "mine", environment=environment).tls == Tls()
    assert Connection.given("h:1", Tls(), "mine", environment=environment).metadata == (
        ("authorization", "Bearer mine"),
    )
    for wrong, message in (
        ({"VAESERVE_CLIENT_TLS": "maybe"}, "VAESERVE_CLIENT_TLS: 'maybe'; expected true or false"),
        ({"VAESERVE_CLIENT_TOKEN": "a", "VAESERVE_CLIENT_TOKEN_FILE": "b"}, "expected one of them"),
        ({"VAESERVE_CLIENT_TLS_KEY": "b"}, "tls.key: without tls.certificate; expected both or neither"),
    ):
        with pytest.raises(ConfigError, match=message):
            Connection.given("localhost:1", None, None, environment=wrong)


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    """Before any call is made."""
    (tmp_path / "ca.pem").write_text("not PEM")
    for ca, message in ((tmp_path / "ca.pem", "no PEM in it"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"tls.ca: {ca}: {message}.*expected a PEM file"):
            Client("localhost:1", tls=Tls(ca))
    with pytest.raises(ConfigError, match="target: ''; expected HOST:PORT"):
        Client("")


def test_arguments_of_another_type_are_named() -> None:
    """Such as a path where a Tls goes, and text for a number."""
    with pytest.raises(ConfigError, match=r"tls: 'ca.crt'; expected Tls\(ca=...\)"):
        Client("localhost:1", tls="ca.crt")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="coalesce_ms: '5'; expected 0 to 1000"):
        Client("localhost:1", coalesce_ms="5")  # type: ignore[arg-type]


def test_a_client_for_tasks_is_made_among_them() -> None:
    """An AsyncClient that no event loop could use is refused as it is made, and not at its first call."""
    with pytest.raises(
        InvalidInputError, match="AsyncClient: made where no event loop runs; expected inside a coroutine"
    ):
        AsyncClient("localhost:8001")
