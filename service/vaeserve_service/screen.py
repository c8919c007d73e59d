"""What whoever starts the service by hand sees: what it serves, where, how and up to which limits."""

from collections.abc import Iterator

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vaeserve import __version__
from vaeserve.manifest import Manifest
from vaeserve_service import runtime
from vaeserve_service.config import ServiceConfig
from vaeserve_service.server import Started

# More than this would scroll the rest away.
MOST_MODELS = 20

_UNITS = ("bytes", "KiB", "MiB", "GiB")


def show(started: Started, config: ServiceConfig, console: Console) -> None:
    """Print the screen, no line of it wider than the terminal."""
    title = Text.assemble(("vaeserve", "bold"), f" {__version__} is serving")
    screen = Group("", title, "", _models(started), "", _facts(started, config), "", "Ctrl-C drains and stops.")
    console.print(screen, soft_wrap=False, highlight=False)


def _models(started: Started) -> Table:
    models = list(started.repository)
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    # Where there is no room for all, those that may wrap give way; their text is cut short instead.
    table.add_column("model", style="bold")
    table.add_column("version", no_wrap=True)
    table.add_column("takes")
    table.add_column("anomalous", no_wrap=True)
    for model in models[:MOST_MODELS]:
        decides = f"p <= {model.manifest.false_positive_rate:.3g}"
        table.add_row(_short(model.name), model.version, _short(_takes(model.manifest)), decides)
    if len(models) > MOST_MODELS:
        table.add_row(f"and {len(models) - MOST_MODELS} more")
    if not models:
        table.add_row("none yet")
    return table


def _short(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _takes(manifest: Manifest) -> str:
    return ", ".join(f"{' x '.join(map(str, spec.shape[1:]))} {spec.name}" for spec in manifest.signature.inputs)


def _facts(started: Started, config: ServiceConfig) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    for name, fact in _said(started, config):
        table.add_row(name, fact if isinstance(fact, Text) else _short(fact))
    return table


def _said(started: Started, config: ServiceConfig) -> Iterator[tuple[str, str | Text]]:
    server, limits, connections = config.server, config.limits, config.connections
    yield "gRPC", _port(server.address(started.grpc_port), _security(config))
    pages = "/metrics /livez /readyz" if server.metrics else "/livez /readyz"
    yield "HTTP", _port(server.address(started.http_port), pages)
    yield "callers", _callers(config)
    yield "services", ", ".join(_services(config))
    yield "tracing", "on" if config.tracing.enabled else "off"
    yield "repository", f"{config.repository.path}, {_looks(config.repository.poll_s)}"
    yield "", ""
    yield "provider", f"{config.runtime.device}, onnxruntime {runtime.VERSION}"
    yield "threads", f"{started.runners} runners, of one ONNX Runtime thread each; 1 event loop"
    waited = f", waited for up to {config.batching.max_delay_ms:g} ms" if config.batching.max_delay_ms else ""
    yield "batches", f"up to {config.batching.max_rows:,} rows{waited}"
    yield "", ""
    yield "request", f"up to {limits.request_rows:,} rows, {_size(limits.message_bytes)}"
    yield "queue", f"up to {limits.queue_rows:,} rows, {_size(limits.queue_bytes)}, of a model"
    yield "connections", f"up to {connections.limit:,}, each of up to {connections.streams:,} calls at once"
    yield "drain", f"up to {config.drain.lame_duck_s + config.drain.grace_s:g} s"


def _port(address: str, said: str) -> Text:
    return Text.assemble((f"{address:<21}", "bold"), f" {said}", no_wrap=True, overflow="ellipsis")


def _security(config: ServiceConfig) -> str:
    if config.tls.certificate is None:
        return "plain text"
    return "TLS, with certificates of clients" if config.tls.client_ca else "TLS"


def _callers(config: ServiceConfig) -> str:
    if config.access.callers is None:
        return "anyone, for anything"
    anonymous = f"anyone for {', '.join(config.access.anonymous)}, else " if config.access.anonymous else ""
    return f"{anonymous}those of {config.access.callers}"


def _services(config: ServiceConfig) -> Iterator[str]:
    yield "VaeService"
    if config.admin.enabled:
        yield "ModelAdmin"
    if config.server.open_inference:
        yield "Open Inference"
    yield "health"
    if config.server.reflection:
        yield "reflection"


def _looks(poll_s: float) -> str:
    return f"looked at every {poll_s:g} s" if poll_s else "looked at once"


def _size(count: float) -> str:
    """Return bytes as whole or nearly whole units."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.4g} {unit}"
