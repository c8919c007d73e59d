"""Who may call what: tokens, certificates, scopes, and what a refusal tells."""

import hmac
import json
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from vaeserve.errors import ConfigError
from vaeserve.local import LocalService, serve_locally
from vaeserve.tensors import to_tensor
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceStub
from vaeserve_service import health
from vaeserve_service.access import OPEN, SCOPES, Access
from vaeserve_service.call import Service
from vaeserve_service.callers import Callers, hashed, new_token
from vaeserve_service.config import AccessConfig, Scope, ServerConfig, TlsConfig
from vaeserve_service.gate import Gate
from vaeserve_service.grpc_aio import add_service
from vaeserve_service.health import Health
from vaeserve_service.http import serve_http
from vaeserve_service.metrics import Metrics
from vaeserve_service.observer import Observer
from vaeserve_service.tls import Certificates

OK, UNAUTHENTICATED, PERMISSION_DENIED = (
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)
UNKNOWN = "credentials: none that the service knows; expected a bearer token or a client certificate of a caller"
ALONE = [("grpc.use_local_subchannel_pool", 1)]

SCORER, ADMIN = "scorer-token-of-the-tests", "admin-token-of-the-tests"
CALLERS = f"""
[scorer]
scopes = ["infer"]
tokens = ["{hashed(SCORER)}"]
[admin]
scopes = ["admin", "reflection", "metrics"]
tokens = ["{hashed("an older one")}", "{hashed(ADMIN)}"]
"""
CERTIFICATES = """
[job]
scopes = ["infer"]
certificates = ["spiffe://prod/ns/jobs/sa/scorer"]
[release]
scopes = ["admin", "reflection"]
certificates = ["release.example.com", "old-release"]
"""

INFER = [f"/vaeserve.v1.VaeService/{name}" for name in ("Unary", "Generated", "Written", "Both", "Collected")]
INFER.append("/inference.GRPCInferenceService/ModelInfer")
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
ADMINS = [
    "/vaeserve.v1.ModelAdmin/Load",
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
    "/of.a.Stranger/Call",
]


@dataclass
class Served:
    """What the service under test has done."""

    port: int = 0
    ran: list[str] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    denied: list[tuple[str, str]] = field(default_factory=list)

    def handlers(self) -> Iterator[grpc.GenericRpcHandler]:
        """Return handlers of each kind, which say that they ran."""

        async def unary(request: bytes, _: Any) -> bytes:
            self.ran.append("unary")
            return request

        async def generated(request: bytes, _: Any) -> AsyncIterator[bytes]:
            self.ran.append("generated")
            yield request
            yield request

        async def written(request: bytes, context: Any) -> None:
            self.ran.append("written")
            await context.write(request)
            await context.write(request)

        async def both(requests: Any, _: Any) -> AsyncIterator[bytes]:
            self.ran.append("both")
            async for request in requests:
                yield request

        async def collected(requests: Any, _: Any) -> bytes:
            self.ran.append("collected")
            return b"".join([request async for request in requests])

        def reading(request: bytes) -> bytes:
            self.read.append(len(request))
            return request

        kinds: dict[str, Any] = {
            "Unary": grpc.unary_unary_rpc_method_handler(unary, reading),
            "Generated": grpc.unary_stream_rpc_method_handler(generated),
            "Written": grpc.unary_stream_rpc_method_handler(written),
            "Both": grpc.stream_stream_rpc_method_handler(both),
            "Collected": grpc.stream_unary_rpc_method_handler(collected),
        }
        names = ("Load", "Call", "ModelInfer", "RepositoryModelLoad", "RepositoryModelUnload")
        one: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(unary) for name in names}
        yield grpc.method_handlers_generic_handler("vaeserve.v1.VaeService", kinds)
        yield grpc.method_handlers_generic_handler("vaeserve.v1.ModelAdmin", one)
        yield grpc.method_handlers_generic_handler("inference.GRPCInferenceService", one)
        yield grpc.method_handlers_generic_handler("of.a.Stranger", one)


@asynccontextmanager
async def serving(folder: Path, *, tls: TlsConfig | None = None, **settings: Any) -> AsyncIterator[Served]:
    """Serve behind the access of `callers.toml` in a folder."""
    served, tls = Served(), tls or TlsConfig()
    access = Access.open(
        AccessConfig(callers=folder / "callers.toml", allow_plaintext=True, **settings),
        tls=tls,
        on_denied=lambda scope, reason: served.denied.append((scope, reason)),
    )
    assert access
    server = grpc.aio.server(interceptors=[Gate(access)], options=[("grpc.max_receive_message_length", 2**24)])
    server.add_generic_rpc_handlers(tuple(served.handlers()))
    probes = Service(health.methods(Health()), observed=False)
    add_service(server, health.SERVICE, probes, observer=Observer(Metrics()))
    reflection.enable_server_reflection(("vaeserve.v1.VaeService",), server)
    certificates, address = Certificates.open(tls), "127.0.0.1:0"
    served.port = (
        server.add_secure_port(address, certificates.grpc_credentials())
        if certificates
        else server.add_insecure_port(address)
    )
    await server.start()
    try:
        yield served
    finally:
        await server.stop(0)


def bearer(*tokens: str) -> tuple[tuple[str, str | bytes], ...]:
    """Return the metadata of a caller with these tokens."""
    return tuple(("authorization", f"Bearer {token}") for token in tokens)


async def call(
    channel: grpc.aio.Channel, method: str, metadata: Any = (), content: bytes = b""
) -> tuple[grpc.StatusCode, str]:
    """Return how a call ends and what it says; any kind of RPC can be called as one with a stream of answers."""
    start: Any = channel.unary_stream(method)
    opened = start(content, metadata=metadata, timeout=20)
    try:
        async for _ in opened:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code(), str(error.details())
    return OK, ""


async def code(channel: grpc.aio.Channel, method: str, metadata: Any = ()) -> grpc.StatusCode:
    """Return how a call ends."""
    return (await call(channel, method, metadata))[0]


def plaintext(served: Served) -> grpc.aio.Channel:
    """Return a channel without TLS."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{served.port}", options=ALONE)


async def test_a_token_opens_its_scopes(tmp_path: Path) -> None:
    """Unary calls, streams of each kind and reflection take a token with their scope, and run for no one else."""
    (tmp_path / "callers.toml").write_text(CALLERS)
    async with serving(tmp_path) as served, plaintext(served) as channel:
        for methods, has, has_not in ((INFER, SCORER, ADMIN), ([REFLECTION, *ADMINS], ADMIN, SCORER)):
            for method in methods:
                served.ran.clear()
                assert await call(channel, method) == (UNAUTHENTICATED, UNKNOWN)
                assert await call(channel, method, bearer("made-up")) == (UNAUTHENTICATED, UNKNOWN)
                assert await code(channel, method, bearer(has_not)) is PERMISSION_DENIED
                assert served.ran == []
                assert await code(channel, method, bearer(has)) is OK
                assert len(served.ran) == (0 if method == REFLECTION else 1)
        missing = await call(channel, INFER[0], bearer(ADMIN))
        assert missing == (PERMISSION_DENIED, "scope: admin has admin, metrics, reflection; this call takes infer")
        assert await code(channel, "/vaeserve.v1.VaeService/None") is UNAUTHENTICATED
        assert await code(channel, "/vaeserve.v1.VaeService/None", bearer(SCORER)) is grpc.StatusCode.UNIMPLEMENTED
        assert set(served.denied) == {
            (scope, reason)
            for scope in ("infer", "admin", "reflection")
            for reason in ("no_credentials", "unknown_credentials", "no_scope")
        }


async def test_probes_take_no_credentials(tmp_path: Path) -> None:
    """Health's Check and Watch answer anyone, even one with a wrong token."""
    (tmp_path / "callers.toml").write_text(CALLERS)
    async with serving(tmp_path) as served, plaintext(served) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="liveness")
        assert (await stub.Check(request, timeout=20)).status == 1
        assert (await stub.Check(request, timeout=20, metadata=bearer("made-up"))).status == 1
        async for state in stub.Watch(request, timeout=20):
            assert state.status == 1
            break


async def test_a_refused_request_is_not_read(tmp_path: Path) -> None:
    """A token is decided on before the request has come, and a large request is neither waited for nor parsed."""
    (tmp_path / "callers.toml").write_text(CALLERS)
    async with serving(tmp_path) as served, plaintext(served) as channel:
        start: Any = channel.stream_stream(INFER[0])
        waiting = start(metadata=bearer("made-up"), timeout=20)  # which never sends its request
        assert await waiting.code() is UNAUTHENTICATED
        content = bytes(1_000_000)
        assert (await call(channel, INFER[0], bearer("made-up"), content))[0] is UNAUTHENTICATED
        assert served.read == []
        assert (await call(channel, INFER[0], bearer(SCORER), content))[0] is OK
        assert served.read == [len(content)]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ([("authorization", f"bearer {SCORER}")], OK),
        ([("authorization", f"Bearer  {SCORER}")], OK),
        ([("authorization", f"Basic {SCORER}")], UNAUTHENTICATED),
        ([("authorization", SCORER)], UNAUTHENTICATED),
        ([("authorization", "Bearer")], UNAUTHENTICATED),
        ([("authorization", "Bearer ")], UNAUTHENTICATED),
        ([("authorization", f"Bearer {hashed(SCORER)}")], UNAUTHENTICATED),
        ([("authorization", f"Bearer {SCORER[:-1]}")], UNAUTHENTICATED),
        ([("authorization", f"Bearer {SCORER}x")], UNAUTHENTICATED),
        (bearer(SCORER, "made-up"), UNAUTHENTICATED),
        ([("authorization-bin", f"Bearer {SCORER}".encode())], UNAUTHENTICATED),
        ([("token", SCORER)], UNAUTHENTICATED),
    ],
)
async def test_only_a_whole_bearer_token_counts(
    tmp_path: Path, metadata: list[tuple[str, str | bytes]], expected: grpc.StatusCode
) -> None:
    """One header of the scheme Bearer with the whole token counts; what is nearly that is refused as nothing is."""
    (tmp_path / "callers.toml").write_text(CALLERS)
    async with serving(tmp_path) as served, plaintext(served) as channel:
        status, details = await call(channel, INFER[0], metadata)
        assert (status, details) == (expected, UNKNOWN if expected is UNAUTHENTICATED else "")


def test_every_hash_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token is compared with every caller's by hmac.compare_digest, whichever it is."""
    (tmp_path / "callers.toml").write_text(CALLERS)
    callers = Callers.read(tmp_path / "callers.toml", client_ca=False)
    compared, compare = [], hmac.compare_digest

    def counted(a: str, b: str) -> bool:
        compared.append(a)
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    for token, name in ((SCORER, "scorer"), (ADMIN, "admin"), ("made-up", None)):
        compared.clear()
        caller = callers.by_token(token)
        assert (caller.name if caller else None) == name
        assert compared == [hashed(SCORER), hashed("an older one"), hashed(ADMIN)]


@pytest.fixture
def mtls(tmp_path: Path, authority: Any) -> TlsConfig:
    """TLS that asks for clients' certificates, and callers that are known by them."""
    authority.issue().write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    (tmp_path / "callers.toml").write_text(CALLERS + CERTIFICATES)
    return TlsConfig(certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key", client_ca=tmp_path / "ca.crt")


async def test_a_certificate_opens_its_scopes(tmp_path: Path, mtls: TlsConfig, authority: Any) -> None:
    """Callers are known by a URI, DNS or, where there is neither, the common name of their certificates."""
    job = authority.issue("x", dns=[], uris=["spiffe://prod/ns/jobs/sa/scorer"])
    release, older = authority.issue("y", dns=["release.example.com"]), authority.issue("old-release", dns=[])
    strangers = [authority.issue("old-release", dns=["other.example.com"]), authority.issue("admin", dns=[])]

    async with serving(tmp_path, tls=mtls) as served:

        def secure(client: Any) -> grpc.aio.Channel:
            credentials = grpc.ssl_channel_credentials(authority.pem, client.key, client.chain)
            return grpc.aio.secure_channel(f"localhost:{served.port}", credentials, options=ALONE)

        for stranger in strangers:
            async with secure(stranger) as channel:
                for method in [*INFER, REFLECTION, *ADMINS]:
                    assert await call(channel, method) == (UNAUTHENTICATED, UNKNOWN)
                assert await code(channel, INFER[0], bearer(SCORER)) is OK
        assert set(served.denied) == {(scope, "unknown_credentials") for scope in ("infer", "reflection", "admin")}
        for methods, has, has_not in (
            (INFER, job, release),
            ([REFLECTION, *ADMINS], release, job),
            (ADMINS, older, job),
        ):
            async with secure(has) as right, secure(has_not) as wrong:
                for method in methods:
                    served.ran.clear()
                    assert await code(wrong, method) is PERMISSION_DENIED
                    assert served.ran == []
                    assert await code(right, method) is OK
                    assert len(served.ran) == (0 if method == REFLECTION else 1)
        async with secure(job) as channel:
            # A token says who one wants to be: a wrong one isn't made up for by a certificate.
            assert await call(channel, INFER[0], bearer("made-up")) == (UNAUTHENTICATED, UNKNOWN)
            assert await code(channel, ADMINS[0], bearer(ADMIN)) is OK


async def test_a_changed_file_holds_from_the_next_call_on(tmp_path: Path) -> None:
    """A token is replaced in two steps, both holding in between; a file that can't be used leaves the last good one."""
    file = tmp_path / "callers.toml"

    def holding(*tokens: str) -> str:
        return f'[scorer]\nscopes = ["infer"]\ntokens = {json.dumps([hashed(token) for token in tokens])}\n'

    file.write_text(holding("old"))
    async with serving(tmp_path) as served, plaintext(served) as channel:

        async def codes() -> list[grpc.StatusCode]:
            return [await code(channel, INFER[0], bearer(token)) for token in ("old", "new")]

        with capture_logs() as logs:
            assert await codes() == [OK, UNAUTHENTICATED]
            file.write_text(holding("old", "new"))
            assert await codes() == [OK, OK]
            file.write_text(holding("new"))
            assert await codes() == [UNAUTHENTICATED, OK]
            assert [entry["event"] for entry in logs] == ["reloaded"] * 2
            for broken in ("", '[scorer]\nscopes = ["infer"]\ntokens = ["hunter2"]\n', "[scorer"):
                logs.clear()
                file.write_text(broken)
                assert await codes() == [UNAUTHENTICATED, OK]
                assert [entry["event"] for entry in logs] == ["reload failed; the last good files hold"]
                assert "hunter2" not in logs[0]["error"]
            file.unlink()
            assert await codes() == [UNAUTHENTICATED, OK]
            file.write_text(holding("old"))
            assert await codes() == [OK, UNAUTHENTICATED]


async def test_a_scope_can_be_anonymous(tmp_path: Path) -> None:
    """What access.anonymous names takes no credentials, and the rest still does."""
    (tmp_path / "callers.toml").write_text(CALLERS)
    async with serving(tmp_path, anonymous=("infer",)) as served, plaintext(served) as channel:
        assert [await code(channel, method) for method in INFER] == [OK] * len(INFER)
        closed = [REFLECTION, *ADMINS]
        assert [await code(channel, method) for method in closed] == [UNAUTHENTICATED] * len(closed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": nobody; expected a table [NAME] for each caller"),
        ("[a", "not a TOML file"),
        ("a = 1", ": a: Input should be a valid dictionary"),
        ("[a]\ntokens = []", ": a.scopes: not set"),
        ("[a]\nscopes = []", ": a.scopes: "),
        ('[a]\nscopes = ["root"]', ": a.scopes.0: Input should be 'infer', 'admin', 'metrics' or 'reflection'"),
        ('[a]\nscopes = ["infer"]\ntokens = ["hunter2"]', ": a.tokens.0: expected sha256: and 64 hex digits"),
        ('[a]\nscopes = ["infer"]\ntokens = "hunter2"', ": a.tokens: Input should be a valid tuple"),
        ('[a]\nscopes = ["infer"]\ntoken = "hunter2"', ": a.token: no such key; expected scopes, tokens or"),
        (CALLERS + f'[b]\nscopes = ["infer"]\ntokens = ["{hashed(ADMIN)}"]', ": b.tokens.0: also admin's; expected"),
        (CERTIFICATES, ": job.certificates: expected tls.client_ca too, or nobody shows one"),
    ],
)
def test_a_wrong_file_of_callers_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """What is wrong is said with its place, and without the token that someone wrote where its hash belongs."""
    (tmp_path / "callers.toml").write_text(content)
    with pytest.raises(ConfigError) as refusal:
        Callers.read(tmp_path / "callers.toml", client_ca=False)
    assert str(refusal.value).startswith(f"access.callers: {tmp_path / 'callers.toml'}: ")
    assert message in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_settings_that_would_leave_it_open_are_refused(tmp_path: Path, mtls: TlsConfig) -> None:
    """Tokens without TLS take a word, and open scopes without callers are no access at all."""

    def opened(tls: TlsConfig, **settings: Any) -> Access | None:
        return Access.open(AccessConfig(**settings), tls=tls, on_denied=lambda *_: None)

    (tmp_path / "callers.toml").write_text(CALLERS)
    callers = tmp_path / "callers.toml"
    with pytest.raises(ConfigError, match="expected tls.certificate and tls.key, or access.allow_plaintext = true"):
        opened(TlsConfig(), callers=callers)
    assert opened(TlsConfig(), callers=callers, allow_plaintext=True)
    assert opened(mtls, callers=callers)
    with pytest.raises(ConfigError, match="access.anonymous: metrics; expected access.callers too"):
        opened(TlsConfig(), anonymous=("metrics",))
    assert opened(TlsConfig()) is None
    with pytest.raises(ConfigError, match="access.callers: .*none.toml: not found"):
        opened(mtls, callers=tmp_path / "none.toml")


def get(url: str, *authorization: str) -> tuple[int, str]:
    """Return the status and body of an HTTP answer."""
    request = urllib.request.Request(url)  # noqa: S310 - loopback
    for value in authorization:
        request.add_header("Authorization", value)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("anonymous", [(), ("metrics",)])
def test_metrics_take_a_token_and_probes_none(tmp_path: Path, anonymous: tuple[Scope, ...]) -> None:
    """The scope metrics opens /metrics, by token or to anyone; /livez and /readyz are always open."""
    (tmp_path / "callers.toml").write_text(CALLERS)
    settings = AccessConfig(callers=tmp_path / "callers.toml", allow_plaintext=True, anonymous=anonymous)
    access = Access.open(settings, tls=TlsConfig(), on_denied=lambda *_: None)
    server = ServerConfig(host="127.0.0.1", http_port=0)
    with serve_http(server, ready=lambda: True, metrics=lambda: b"1", access=access) as port:
        url = f"http://127.0.0.1:{port}"
        assert get(f"{url}/livez") == get(f"{url}/readyz", "Bearer made-up") == (200, "ok\n")
        assert get(f"{url}/metrics", f"Bearer {ADMIN}") == (200, "1")
        if anonymous:
            assert get(f"{url}/metrics") == (200, "1")
        else:
            assert get(f"{url}/metrics") == get(f"{url}/metrics", "Bearer made-up") == (401, f"{UNKNOWN}\n")
            assert get(f"{url}/metrics", f"Bearer {SCORER}")[0] == 403


def test_metrics_can_be_turned_off() -> None:
    """Without server.metrics there is no such page."""
    server = ServerConfig(host="127.0.0.1", http_port=0, metrics=False)
    with serve_http(server, ready=lambda: True, metrics=lambda: b"1") as port:
        assert get(f"http://127.0.0.1:{port}/metrics") == (404, "expected one of /livez, /readyz\n")


def test_token_makes_what_the_file_takes(tmp_path: Path) -> None:
    """The command prints a token of 256 bits once, and the lines by which the service knows it."""
    command = [sys.executable, "-m", "vaeserve", "token", "batch jobs", "--scope", "infer", "--scope", "metrics"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    token = done.stdout.strip()
    assert len(token) == len(new_token()) == len("vaeserve_") + 43
    assert token not in done.stderr
    (tmp_path / "callers.toml").write_text(done.stderr)
    caller = Callers.read(tmp_path / "callers.toml", client_ca=False).by_token(token)
    assert caller
    assert (caller.name, sorted(caller.scopes)) == ("batch jobs", ["infer", "metrics"])

    done = subprocess.run([*command, "--scope", "root"], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--scope root: expected one of infer, admin, metrics, reflection" in done.stderr


@pytest.fixture(scope="module")
def guarded(models: Any, tmp_path_factory: pytest.TempPathFactory, authority: Any) -> Iterator[LocalService]:
    """A service over TLS that knows two callers by their tokens."""
    folder = tmp_path_factory.mktemp("guarded")
    authority.issue().write(folder)
    (folder / "callers.toml").write_text(CALLERS)
    files = {"tls.certificate": "tls.crt", "tls.key": "tls.key", "access.callers": "callers.toml"}
    options = [part for key, name in files.items() for part in ("--set", f"{key}={folder / name}")]
    with serve_locally(
        models.repository, log=folder / "log", options=[*options, "--set", 'access.anonymous=["metrics"]']
    ) as started:
        yield started


@pytest.fixture
def encrypted(guarded: LocalService, authority: Any) -> Iterator[grpc.Channel]:
    """A channel to it."""
    target = guarded.target.replace("127.0.0.1", "localhost")
    with grpc.secure_channel(target, grpc.ssl_channel_credentials(authority.pem)) as opened:
        yield opened


def test_the_service_scores_for_whom_it_knows(guarded: LocalService, encrypted: grpc.Channel, authority: Any) -> None:
    """A service process scores for the right token, refuses others, counts them, and repeats no token anywhere."""
    stub, rows = VaeServiceStub(encrypted), to_tensor(np.zeros((2, 7), np.float32))
    request = pb.ScoreRequest(model=pb.ModelSpec(name="table7"), inputs=[rows])
    assert len(stub.Score(request, metadata=bearer(SCORER), timeout=20).score) == 2
    for tokens, expected in (((), UNAUTHENTICATED), (("made-up",), UNAUTHENTICATED), ((ADMIN,), PERMISSION_DENIED)):
        with pytest.raises(grpc.RpcError) as refusal:
            stub.Score(request, metadata=bearer(*tokens), timeout=20)
        assert refusal.value.code() is expected
    health: Any = health_pb2_grpc.HealthStub(encrypted)
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=20).status == 1

    context = ssl.create_default_context(cadata=authority.pem.decode())
    url = guarded.http.replace("http://127.0.0.1", "https://localhost")
    with urllib.request.urlopen(f"{url}/metrics", timeout=20, context=context) as response:  # noqa: S310
        metrics = response.read().decode()
    for reason in ("no_credentials", "unknown_credentials", "no_scope"):
        assert f'vaeserve_access_denied_total{{reason="{reason}",scope="infer"}} 1.0' in metrics
    assert 'vaeserve_requests_total{code="OK",model="table7",rpc="Score",version="1"} 1.0' in metrics
    said = guarded.log.read_text() + metrics
    for secret in (SCORER, ADMIN, "made-up", *(hashed(token)[7:] for token in (SCORER, ADMIN, "made-up"))):
        assert secret not in said


def test_every_service_on_the_port_has_its_scope(encrypted: grpc.Channel) -> None:
    """What the port offers is known to the table of scopes, so that nothing new is taken for what it isn't."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(encrypted)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]), metadata=bearer(ADMIN), timeout=20)
    assert {service.name for service in answer.list_services_response.service} <= {*SCOPES, *OPEN}


def test_tokens_without_tls_stop_the_start(tmp_path: Path) -> None:
    """A service that would take tokens as plain text exits with 2, before it looks at any bundle."""
    (tmp_path / "callers.toml").write_text(CALLERS)
    callers = f"access.callers={tmp_path / 'callers.toml'}"
    command = [sys.executable, "-m", "vaeserve", "serve", "--repository", str(tmp_path), "--set", callers]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "tokens would cross the network as plain text" in done.stderr
    allowed = [*command, "--set", "access.allow_plaintext=true"]
    done = subprocess.run(allowed, check=False, capture_output=True, text=True, timeout=60)
    assert "no bundles" in done.stderr
