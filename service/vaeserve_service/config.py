"""What the service can be told: sections of settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vaeserve.config import Config, Section
from vaeserve.manifest import NAME

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]
# What gRPC counts in milliseconds, in 32 bits of which the largest is for ever: from one of them to three weeks.
Period = Annotated[float, Field(ge=0.001, le=1_814_400)]
Scope = Literal["infer", "admin", "metrics", "reflection"]
Transport = Literal["grpcio", "asyncio"]
LogCalls = Literal["none", "failed", "all"]
ModelName = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
Version = Annotated[int, Field(ge=1, lt=10**18)]


class ServerConfig(Section):
    """Where to listen, by what, and what is offered there beside the service's own RPCs; port 0 takes a free one."""

    transport: Transport = "grpcio"
    host: str = "0.0.0.0"  # noqa: S104 - a container's service is reached from outside it
    grpc_port: Port = 8001
    http_port: Port = 8002
    open_inference: bool = True
    reflection: bool = True
    metrics: bool = True

    def address(self, port: int) -> str:
        """Return the host with a port, as gRPC and people write it."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


class TlsConfig(Section):
    """The files of the service's certificate, and of the authorities that gRPC callers' certificates must come from."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


class AccessConfig(Section):
    """The file of callers, the scopes that nobody needs to be one for, and whether tokens may come without TLS."""

    callers: Path | None = None
    anonymous: tuple[Scope, ...] = ()
    allow_plaintext: bool = False


class RepositoryConfig(Section):
    """Where the bundles are, `NAME/VERSION/`, which of them are served, and how often to look for new ones.

    Of each model the `latest` newest versions are served, or those listed in `versions`; of all models, or of those
    named in `models`. A `poll_s` of 0 is never.
    """

    path: Path
    poll_s: Seconds = 5.0
    latest: Count = 1
    models: tuple[ModelName, ...] = ()
    versions: Mapping[ModelName, Annotated[tuple[Version, ...], Field(min_length=1)]] = {}

    @model_validator(mode="after")
    def _lists_versions_of_models_served(self) -> Self:
        for name in self.versions:
            if self.models and name not in self.models:
                raise ValueError(f"versions of {name!r}; expected of one of models: {', '.join(self.models)}")
        return self


class RuntimeConfig(Section):
    """What the graphs run on, and how many calls are computed at once.

    Runners are by default one more than the processors of the cgroup, on a GPU two: the others compute while one is
    handed its rows.
    `gpu_memory_bytes` is the most that each graph takes of its memory.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    runners: Annotated[int, Field(ge=1, le=1024)] | None = None
    gpu_memory_bytes: Count | None = None

    @model_validator(mode="after")
    def _limits_a_gpu_that_is_used(self) -> Self:
        if self.gpu_memory_bytes and self.device != "cuda":
            raise ValueError(f"gpu_memory_bytes with device {self.device}; expected it with device cuda")
        return self


class BatchingConfig(Section):
    """How many rows of waiting requests are joined into one call, and how long a call waits for them under load.

    More than a few hundred rows make a call no cheaper a row, and keep a runner from its neighbours' work. A call waits
    only for as many requests as were lately in flight at once; a `max_delay_ms` of 0 is never.
    """

    max_rows: Annotated[int, Field(ge=1, le=65536)] = 256
    max_delay_ms: Annotated[float, Field(ge=0, le=1000)] = 4.0


class LimitsConfig(Section):
    """What a request may be, how many of a stream are computed at once, and what may wait for a model."""

    message_bytes: Annotated[int, Field(ge=1, le=2**31 - 1)] = 64 * 2**20
    tensor_elements: Count = 2**24
    request_rows: Count = 100_000
    response_bytes: Count = 64 * 2**20
    stream_requests: Count = 128
    queue_rows: Count = 200_000
    queue_bytes: Count = 256 * 2**20


class ConnectionsConfig(Section):
    """How many connections the gRPC port takes, how much each may ask at once, and how long it lasts.

    What each guards against, and what was measured: docs/decisions/floods.md.
    """

    limit: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1000
    streams: Annotated[int, Field(ge=1, le=2**31 - 1)] = 256
    metadata_bytes: Annotated[int, Field(ge=1024, le=2**24)] = 16 * 2**10
    handshake_s: Period = 10.0
    idle_s: Period = 300.0
    age_s: Period = 3600.0
    age_grace_s: Period = 600.0
    keepalive_s: Period = 60.0
    keepalive_timeout_s: Period = 20.0


class LogConfig(Section):
    """How it is logged, by itself as text on a terminal; from which level up; and which calls have a line each."""

    format: Literal["auto", "json", "text"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"
    calls: LogCalls = "none"


class TracingConfig(Section):
    """Whether calls are traced, by OpenTelemetry; its own variables say where to."""

    enabled: bool = False


class DrainConfig(Section):
    """How the service stops: how long it says that it will and still takes calls, and then for those in flight."""

    lame_duck_s: Seconds = 0.0
    grace_s: Seconds = 30.0


class AdminConfig(Section):
    """Whether callers may load and unload models, by `vaeserve.v1.ModelAdmin` or the Open Inference Protocol."""

    enabled: bool = False


class ServiceConfig(Config):
    """All of the service's settings."""

    repository: RepositoryConfig
    server: ServerConfig = ServerConfig()
    tls: TlsConfig = TlsConfig()
    access: AccessConfig = AccessConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    batching: BatchingConfig = BatchingConfig()
    limits: LimitsConfig = LimitsConfig()
    connections: ConnectionsConfig = ConnectionsConfig()
    drain: DrainConfig = DrainConfig()
    admin: AdminConfig = AdminConfig()
    log: LogConfig = LogConfig()
    tracing: TracingConfig = TracingConfig()
