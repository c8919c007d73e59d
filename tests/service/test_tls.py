"""TLS: whom the service's ports let in, and that certificates change while it serves."""

import asyncio
import re
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from tests.service.carrying import carrying, raw
from vaeserve.errors import ConfigError
from vaeserve.local import serve_locally
from vaeserve_service.config import ServerConfig, TlsConfig, Transport
from vaeserve_service.http import serve_http
from vaeserve_service.tls import Certificates

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
# A subchannel of its own, so that a connection is never an earlier test's.
ALONE = [("grpc.use_local_subchannel_pool", 1)]


def config(folder: Path, *, client_ca: bool = False) -> TlsConfig:
    """Return settings for the files in a folder."""
    ca = folder / "ca.crt" if client_ca else None
    return TlsConfig(certificate=folder / "tls.crt", key=folder / "tls.key", client_ca=ca)


def opened(settings: TlsConfig) -> Certificates:
    """Return the certificates of settings that have them."""
    certificates = Certificates.open(settings)
    assert certificates
    return certificates


@pytest.fixture(params=get_args(Transport))
def listening(request: pytest.FixtureRequest) -> Callable[[Certificates], AbstractAsyncContextManager[int]]:
    """What serves an echo behind certificates, by each transport; yields its port."""

    async def answer(content: bytes, _: Any) -> bytes:
        return content

    @asynccontextmanager
    async def listen(certificates: Certificates) -> AsyncIterator[int]:
        async with carrying(request.param, {"Echo": raw(answer)}, parts={"certificates": certificates}) as (_, port):
            yield port

    return listen


def channel(port: int, root: Any, client: Any = None) -> grpc.aio.Channel:
    """Return a channel that trusts an authority, with a certificate if any."""
    pair = (client.key, client.chain) if client else (None, None)
    return grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(root.pem, *pair), options=ALONE)


async def echo(open_channel: grpc.aio.Channel) -> grpc.StatusCode:
    """Return how a call ends."""
    call: Any = open_channel.unary_unary("/Test/Echo")
    try:
        assert await call(b"1", timeout=20) == b"1"
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def connect(port: int, root: Any, client: Any = None) -> grpc.StatusCode:
    """Return how a call over a new connection ends."""
    async with channel(port, root, client) as new:
        return await echo(new)


async def test_a_client_takes_only_a_certificate_that_is_right(
    listening: Any, tmp_path: Path, authority: Any, new_authority: Any
) -> None:
    """A client refuses a certificate of another authority, of another host or past its time, and takes a right one."""
    wrong = {
        "another authority": new_authority("other").issue(),
        "another host": authority.issue(dns=["other.example"]),
        "expired": authority.issue(days=-1),
    }
    for name, issued in wrong.items():
        issued.write(tmp_path)
        async with listening(opened(config(tmp_path))) as port:
            assert (name, await connect(port, authority)) == (name, UNAVAILABLE)
    authority.issue().write(tmp_path)
    async with listening(opened(config(tmp_path))) as port:
        assert await connect(port, authority) is grpc.StatusCode.OK
        async with grpc.aio.insecure_channel(f"localhost:{port}", options=ALONE) as plaintext:
            assert await echo(plaintext) is UNAVAILABLE


async def test_a_client_without_a_right_certificate_is_refused(
    listening: Any, tmp_path: Path, authority: Any, new_authority: Any
) -> None:
    """With client_ca a connection takes a certificate of that authority, within its time."""
    authority.issue().write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    async with listening(opened(config(tmp_path, client_ca=True))) as port:
        assert await connect(port, authority) is UNAVAILABLE
        assert await connect(port, authority, new_authority("other").issue("client")) is UNAVAILABLE
        assert await connect(port, authority, authority.issue("client", days=-1)) is UNAVAILABLE
        assert await connect(port, authority, authority.issue("client")) is grpc.StatusCode.OK
    async with listening(opened(config(tmp_path))) as port:
        assert await connect(port, authority) is grpc.StatusCode.OK


def rewritten(folder: Path, issued: Any) -> None:
    """Change the files in place."""
    issued.write(folder)


def renamed(folder: Path, issued: Any) -> None:
    """Put new files in the old ones' place, one after the other."""
    new = folder / "new"
    new.mkdir()
    issued.write(new)
    for name in ("tls.key", "tls.crt"):
        (new / name).rename(folder / name)


def relinked(folder: Path, issued: Any) -> None:
    """Change the files as Kubernetes changes those of a secret: by one link to their folder."""
    new = folder / "..2026"
    new.mkdir()
    issued.write(new)
    for name in ("tls.key", "tls.crt"):
        if not (folder / name).is_symlink():
            (folder / name).unlink()
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data_tmp").symlink_to(new.name)
    (folder / "..data_tmp").rename(folder / "..data")


def linked(folder: Path, issued: Any) -> None:
    """Lay files out as Kubernetes does those of a secret."""
    old = folder / "..2025"
    old.mkdir()
    issued.write(old)
    (folder / "..data").symlink_to(old.name)
    for name in ("tls.key", "tls.crt"):
        (folder / name).symlink_to(f"..data/{name}")


@pytest.mark.parametrize("change", [rewritten, renamed, relinked])
async def test_new_connections_get_the_new_certificate(
    listening: Any, tmp_path: Path, authority: Any, new_authority: Any, change: Callable[[Path, Any], None]
) -> None:
    """However the files change, open connections live on, and new ones are met with the new certificate."""
    (linked if change is relinked else rewritten)(tmp_path, authority.issue())
    newer = new_authority("newer")
    certificates = opened(config(tmp_path))
    async with listening(certificates) as port, channel(port, authority) as before:
        assert await echo(before) is grpc.StatusCode.OK
        assert await connect(port, newer) is UNAVAILABLE
        change(tmp_path, newer.issue())
        assert await connect(port, newer) is grpc.StatusCode.OK
        assert await connect(port, authority) is UNAVAILABLE
        assert await echo(before) is grpc.StatusCode.OK
        assert certificates.current()


async def test_new_connections_get_the_new_authorities(
    listening: Any, tmp_path: Path, authority: Any, new_authority: Any
) -> None:
    """When client_ca changes, whom it no longer vouches for can't connect any more."""
    authority.issue().write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    newer = new_authority("newer")
    async with listening(opened(config(tmp_path, client_ca=True))) as port:
        assert await connect(port, authority, newer.issue("client")) is UNAVAILABLE
        (tmp_path / "ca.crt").write_bytes(newer.pem)
        assert await connect(port, authority, newer.issue("client")) is grpc.StatusCode.OK
        assert await connect(port, authority, authority.issue("client")) is UNAVAILABLE


def cut_short(folder: Path, issued: Any) -> None:
    """Write half of the certificate."""
    (folder / "tls.crt").write_bytes(issued.chain[:200])


def half_a_pair(folder: Path, issued: Any) -> None:
    """Write the certificate, and not yet its key."""
    (folder / "tls.crt").write_bytes(issued.chain)


def emptied(folder: Path, _: Any) -> None:
    """Leave an empty key."""
    (folder / "tls.key").write_bytes(b"")


def removed(folder: Path, _: Any) -> None:
    """Take the key away."""
    (folder / "tls.key").unlink()


def of_a_kind_that_grpc_fails_on(folder: Path, _: Any) -> None:
    """Write a key with which gRPC would fail every handshake."""
    folder.joinpath("tls.key").write_bytes(pem_of(ed25519.Ed25519PrivateKey.generate()))


@pytest.mark.parametrize("change", [cut_short, half_a_pair, emptied, removed, of_a_kind_that_grpc_fails_on])
async def test_a_broken_change_leaves_the_old_certificate(
    listening: Any, tmp_path: Path, authority: Any, new_authority: Any, change: Callable[[Path, Any], None]
) -> None:
    """Files that can't be used are said once, without their content, and the last good ones serve until they can be."""
    authority.issue().write(tmp_path)
    newer = new_authority("newer")
    issued = newer.issue()
    certificates = opened(config(tmp_path))
    expires = certificates.expires()
    with capture_logs() as logs:
        async with listening(certificates) as port:
            change(tmp_path, issued)
            for _ in range(3):
                assert await connect(port, authority) is grpc.StatusCode.OK
            assert not certificates.current()
            assert certificates.expires() == expires
            (failure,) = logs
            assert (failure["event"], failure["section"]) == ("reload failed; the last good files hold", "tls")
            assert str(tmp_path) in failure["error"]
            assert not re.search("[A-Za-z0-9+/=]{40}", failure["error"].replace(str(tmp_path), ""))

            issued.write(tmp_path)
            assert await connect(port, newer) is grpc.StatusCode.OK
            assert certificates.current()
            assert logs[-1]["event"] == "reloaded"


def test_the_files_are_read_only_when_they_change(tmp_path: Path, authority: Any) -> None:
    """What a handshake costs, while nothing changes, is a look at the files, and the same content."""
    authority.issue().write(tmp_path)
    certificates = opened(config(tmp_path))
    context = certificates.http_context()
    assert certificates.http_context() is context
    authority.issue().write(tmp_path)
    assert certificates.http_context() is not context


def test_what_expires_first_counts(tmp_path: Path, authority: Any, new_authority: Any) -> None:
    """The time of expiry is that of the chain: an intermediate authority's where that comes first."""
    between = new_authority("between", above=authority, days=5)
    between.issue(days=10).write(tmp_path)
    expected = datetime.now(UTC) + timedelta(days=5)
    assert opened(config(tmp_path)).expires() == pytest.approx(expected.timestamp(), abs=3600)


def pem_of(key: Any, passphrase: bytes = b"") -> bytes:
    """Return a key as PEM, encrypted if there is a passphrase."""
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


def test_no_certificate_is_no_tls() -> None:
    """Without settings there are no certificates."""
    assert Certificates.open(TlsConfig()) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key": None}, "tls.certificate: set alone; expected tls.certificate and tls.key too"),
        ({"certificate": None}, "tls.key: set alone; expected"),
        ({"certificate": None, "key": None, "client_ca": "ca.crt"}, "tls.client_ca: set alone; expected"),
        ({"certificate": "none"}, "tls.certificate: {tmp}/none: No such file or directory; expected a PEM file"),
        ({"key": "."}, "tls.key: {tmp}: Is a directory; expected a PEM file"),
        ({"client_ca": "none"}, "tls.client_ca: {tmp}/none: No such file or directory; expected a PEM file"),
        ({"certificate": "tls.key"}, "tls.certificate: {tmp}/tls.key: not readable as certificates; expected PEM"),
        ({"key": "tls.crt"}, "tls.key: {tmp}/tls.crt: not readable as a private key; expected PEM"),
        ({"key": "other.key"}, "tls.key: {tmp}/other.key: not the key of {tmp}/tls.crt's first certificate"),
        ({"key": "encrypted.key"}, "tls.key: {tmp}/encrypted.key: encrypted; expected a key without a passphrase"),
        ({"key": "ed25519.key"}, "expected RSA, or ECDSA on P-256 or P-384"),
        ({"key": "p521.key"}, "expected RSA, or ECDSA on P-256 or P-384"),
        ({"client_ca": "tls.key"}, "tls.client_ca: {tmp}/tls.key: not readable as certificates; expected PEM"),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, authority: Any, settings: dict[str, str | None], message: str
) -> None:
    """Each wrong file is refused with its setting, its path and what was expected."""
    authority.issue().write(tmp_path)
    (tmp_path / "other.key").write_bytes(authority.issue().key)
    (tmp_path / "encrypted.key").write_bytes(pem_of(rsa.generate_private_key(65537, 2048), b"passphrase"))
    (tmp_path / "ed25519.key").write_bytes(pem_of(ed25519.Ed25519PrivateKey.generate()))
    (tmp_path / "p521.key").write_bytes(pem_of(ec.generate_private_key(ec.SECP521R1())))
    names = {"certificate": "tls.crt", "key": "tls.key"} | settings
    with pytest.raises(ConfigError) as refusal:
        Certificates.open(TlsConfig(**{key: tmp_path / name for key, name in names.items() if name}))
    assert message.replace("{tmp}", str(tmp_path)) in str(refusal.value)


def test_a_key_in_place_of_its_path_is_not_repeated(tmp_path: Path, authority: Any) -> None:
    """Who gives the key itself, where its path is expected, doesn't find it in the error."""
    issued = authority.issue()
    issued.write(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        Certificates.open(TlsConfig(certificate=tmp_path / "tls.crt", key=Path(issued.key.decode())))
    assert str(refusal.value) == "tls.key: a PEM; expected the path of the file that holds it"


def trusting(root: Any) -> ssl.SSLContext:
    """Return the context of an HTTPS client that trusts an authority."""
    return ssl.create_default_context(cadata=root.pem.decode())


def get(port: int, context: ssl.SSLContext) -> bytes:
    """Return the answer to an HTTPS request for /livez."""
    with urllib.request.urlopen(f"https://localhost:{port}/livez", timeout=20, context=context) as response:
        return bytes(response.read())


def test_the_http_port_has_the_certificate_too(tmp_path: Path, authority: Any, new_authority: Any) -> None:
    """HTTP is HTTPS where there is a certificate, the newest of them, and asks for none of the prober's."""
    authority.issue().write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    newer = new_authority("newer")
    server = ServerConfig(host="127.0.0.1", http_port=0)
    certificates = opened(config(tmp_path, client_ca=True))
    with serve_http(server, ready=lambda: True, metrics=lambda: b"", certificates=certificates) as port:
        assert get(port, trusting(authority)) == b"ok\n"
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            get(port, trusting(newer))
        with pytest.raises(OSError):  # noqa: PT011 - a reset or an end, as the kernel has it
            urllib.request.urlopen(f"http://localhost:{port}/livez", timeout=20)
        newer.issue().write(tmp_path)
        assert get(port, trusting(newer)) == b"ok\n"


def test_a_handshake_that_never_ends_holds_up_nobody(tmp_path: Path, authority: Any) -> None:
    """Who connects to the HTTP port and says nothing doesn't keep others from their answers."""
    authority.issue().write(tmp_path)
    server = ServerConfig(host="127.0.0.1", http_port=0)
    with (
        serve_http(server, ready=lambda: True, metrics=lambda: b"", certificates=opened(config(tmp_path))) as port,
        socket.create_connection(("127.0.0.1", port)),
    ):
        assert get(port, trusting(authority)) == b"ok\n"


def options(settings: TlsConfig) -> list[str]:
    """Return settings as arguments of `vaeserve serve`."""
    return [part for key, path in settings if path for part in ("--set", f"tls.{key}={path}")]


async def test_the_service_serves_over_tls(models: Any, tmp_path: Path, authority: Any, new_authority: Any) -> None:
    """A service process takes calls over TLS, renews its certificate, shows its expiry, and tells nobody its key."""
    issued, newer = authority.issue(days=10), new_authority("newer")
    issued.write(tmp_path)
    with serve_locally(models.repository, log=tmp_path / "log", options=options(config(tmp_path))) as service:
        port, http_port = (int(address.rpartition(":")[2]) for address in (service.target, service.http))
        metrics = await asyncio.to_thread(metrics_of, http_port, trusting(authority))
        expected = (datetime.now(UTC) + timedelta(days=10)).timestamp()
        assert metrics["vaeserve_tls_certificate_expiry_timestamp_seconds"] == pytest.approx(expected, abs=3600)
        assert metrics['vaeserve_last_reload_successful{section="tls"}'] == 1

        (tmp_path / "tls.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
        async with channel(port, authority) as opened_channel:
            stub: Any = health_pb2_grpc.HealthStub(opened_channel)
            assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)).status == 1
            metrics = await asyncio.to_thread(metrics_of, http_port, trusting(authority))
            assert metrics['vaeserve_last_reload_successful{section="tls"}'] == 0
            newer.issue(days=20).write(tmp_path)
            metrics = await asyncio.to_thread(metrics_of, http_port, trusting(newer))
            assert metrics["vaeserve_tls_certificate_expiry_timestamp_seconds"] > expected + 9 * 86400
            assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)).status == 1
        async with channel(port, newer) as opened_channel:
            stub = health_pb2_grpc.HealthStub(opened_channel)
            assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)).status == 1
    said = service.log.read_text()
    for line in issued.key.decode().splitlines()[1:-1]:
        assert line not in said
    assert said.count("reload failed") == 1


def metrics_of(port: int, context: ssl.SSLContext) -> dict[str, float]:
    """Return the metrics by name."""
    with urllib.request.urlopen(f"https://localhost:{port}/metrics", timeout=20, context=context) as response:
        lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_a_wrong_certificate_stops_the_start(tmp_path: Path, authority: Any) -> None:
    """A service whose certificate can't be used exits with 2 and one message, before it looks at any bundle."""
    authority.issue().write(tmp_path)
    (tmp_path / "tls.key").write_bytes(authority.issue().key)
    command = [sys.executable, "-m", "vaeserve", "serve", "--repository", str(tmp_path), *options(config(tmp_path))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "not the key of" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "tls.key").unlink()
    done = subprocess.run(command[:-4], check=False, capture_output=True, text=True, timeout=60)
    assert "no bundles" in done.stderr
