"""The service's life: start, serve, drain, stop."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
import uvloop
from grpc_reflection.v1alpha import reflection, reflection_pb2

from vaeserve_service import admin, open_inference
from vaeserve_service import health as health_service
from vaeserve_service.access import Access
from vaeserve_service.call import Method, Service
from vaeserve_service.config import RuntimeConfig, ServiceConfig
from vaeserve_service.connections import allow_open_files
from vaeserve_service.cpus import available_cpus, yield_to_others
from vaeserve_service.daemon import Daemon, end_if_one_works
from vaeserve_service.drain import Drain
from vaeserve_service.grpc_aio import GrpcAio
from vaeserve_service.health import Health
from vaeserve_service.http import serve_http
from vaeserve_service.http2.server import Http2Server
from vaeserve_service.loading import Loader
from vaeserve_service.metrics import Metrics
from vaeserve_service.observer import Observer
from vaeserve_service.open_inference import OpenInference
from vaeserve_service.repository import Repository
from vaeserve_service.runners import Runners
from vaeserve_service.servicers import SERVICE, VaeService, methods
from vaeserve_service.tls import Certificates
from vaeserve_service.tracing import Tracing
from vaeserve_service.transport import Transport
from vaeserve_service.watcher import Watcher

log = structlog.get_logger()

TRANSPORTS: dict[str, Callable[..., Transport]] = {"grpcio": GrpcAio, "asyncio": Http2Server}
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Started:
    """What a started service listens on and serves."""

    grpc_port: int
    http_port: int
    runners: int
    repository: Repository


async def serve(
    config: ServiceConfig,
    *,
    stop: asyncio.Event,
    on_started: Callable[[Started], None] = lambda _: None,
) -> None:
    """Serve until `stop` is set, then drain; what still loads then is not waited for.

    Raises BundleError for a bundle that can't be served, ConfigError for a port that is taken, for certificates or
    callers that can't be used, and for more connections than the process may have files; before either port opens, or
    with both closed again.
    """
    allow_open_files(config.connections)
    metrics, health, repository, drain = Metrics(), Health(), Repository(), Drain()
    tracing = Tracing.open(config.tracing)
    observer = Observer(metrics, tracing=tracing, log_calls=config.log.calls)
    certificates = _certificates(config, metrics)
    access = _access(config, metrics)
    with contextlib.ExitStack() as stack:
        if tracing:
            stack.enter_context(tracing)
        runners = stack.enter_context(Runners(_runners(config.runtime)))
        watcher = Watcher(
            config,
            repository=repository,
            loader=Loader(config, runners=runners, metrics=metrics),
            metrics=metrics,
            health=health,
            executor=stack.enter_context(Daemon("repository")),
        )
        if not await _unless(stop, watcher.start()):
            log.info("stopped before it served")
            return
        open_rpcs = OpenInference(repository, config, metrics=metrics, health=health, watcher=watcher)
        services = _services(config, repository, watcher, open_rpcs)
        transport = TRANSPORTS[config.server.transport](
            services | _for_tools(config, health, services),
            config=config,
            observer=observer,
            drain=drain,
            access=access,
            certificates=certificates,
        )
        grpc_port = transport.listen()
        http_port = stack.enter_context(
            serve_http(
                config.server,
                ready=lambda: health.ready,
                metrics=metrics.exposition,
                certificates=certificates,
                access=access,
            )
        )
        await transport.start()
        watcher.when_complete(partial(_say_ready, health, list(services)))
        watching = asyncio.create_task(watcher.watch())
        log.info("serving", grpc_port=grpc_port, http_port=http_port, models=repository.names())
        on_started(Started(grpc_port, http_port, runners.count, repository))

        await stop.wait()
        log.info("draining", lame_duck_s=config.drain.lame_duck_s, grace_s=config.drain.grace_s)
        watching.cancel()
        # Callers hear of it first, and go elsewhere before they would be refused.
        health.close()
        await asyncio.sleep(config.drain.lame_duck_s)
        drain.begin()
        await transport.stop(config.drain.grace_s)
    log.info("stopped")


def run(config: ServiceConfig, *, on_started: Callable[[Started], None] = lambda _: None) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once. Raises as `serve` does."""

    async def until_signalled() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def on_signal() -> None:
            stop.set()
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)  # SIGINT too, which Python would make an exception of

        for number in _SIGNALS:
            loop.add_signal_handler(number, on_signal)

        def on_all_threads_started(started: Started) -> None:
            prefer_this_thread()
            on_started(started)

        await serve(config, stop=stop, on_started=on_all_threads_started)

    prefer_this_thread = yield_to_others()
    # A sixth off what a call costs.
    uvloop.run(until_signalled())
    end_if_one_works()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do some work, and give it up once `stop` is set; tell whether to go on."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
        return not stop.is_set()
    finally:
        working.cancel()
        stopping.cancel()


def _runners(config: RuntimeConfig) -> int:
    """Return how many calls are computed at once: one more than compute, for while it is handed its rows."""
    return config.runners or (2 if config.device == "cuda" else available_cpus() + 1)


def _certificates(config: ServiceConfig, metrics: Metrics) -> Certificates | None:
    certificates = Certificates.open(config.tls)
    if certificates:
        metrics.watch_files("tls", certificates.current)
        metrics.watch_certificate(certificates.expires)
    return certificates


def _access(config: ServiceConfig, metrics: Metrics) -> Access | None:
    access = Access.open(config.access, tls=config.tls, on_denied=metrics.denied)
    if access:
        metrics.watch_files("access", access.current)
    return access


def _services(
    config: ServiceConfig, repository: Repository, watcher: Watcher, open_rpcs: OpenInference
) -> dict[str, Service]:
    """Return what the settings offer, by its name."""
    limits = config.limits
    native = VaeService(repository, most_elements=limits.tensor_elements, stream_requests=limits.stream_requests)
    services = {SERVICE: Service(methods(native))}
    if config.admin.enabled:
        services[admin.SERVICE] = Service(admin.methods(admin.ModelAdmin(repository, watcher)))
    if config.server.open_inference:
        rpcs = open_inference.methods(open_rpcs, admin=config.admin.enabled)
        services[open_inference.SERVICE] = Service(rpcs)
    return services


def _for_tools(config: ServiceConfig, health: Health, services: Iterable[str]) -> dict[str, Service]:
    """Return what is there for probes and tools."""
    tools = {health_service.SERVICE: Service(health_service.methods(health), observed=False)}
    if config.server.reflection:
        names = (*services, *tools, reflection.SERVICE_NAME)
        tools[reflection.SERVICE_NAME] = Service(_reflection(names), observed=False)
    return tools


def _reflection(names: Sequence[str]) -> dict[str, Method]:
    """Return the RPC that says what the service offers."""
    answers: Any = reflection.aio.ReflectionServicer(names)
    info = reflection_pb2.ServerReflectionRequest
    return {"ServerReflectionInfo": Method(info, answers.ServerReflectionInfo, streaming=True)}


def _say_ready(health: Health, services: Sequence[str]) -> None:
    """Say that the service serves, as it has all that the settings name; what is unloaded later doesn't change it."""
    for name in ("", *services):
        health.set(name, serving=True)
    log.info("ready")
