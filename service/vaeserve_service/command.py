"""`vaeserve serve` and `token`: settings to a running service, with one screen for whoever starts it by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from vaeserve.config import load, parse_overrides
from vaeserve.errors import ConfigError
from vaeserve_service import logs
from vaeserve_service.callers import hashed, new_token
from vaeserve_service.config import Scope, ServiceConfig
from vaeserve_service.server import Started, run


def serve(file: Path | None, overrides: Sequence[str], flags: Mapping[str, Any], *, console: Console) -> None:
    """Serve until SIGTERM or SIGINT.

    flags: settings by `section.key`, None where a flag wasn't given. Raises ConfigError or BundleError before any
    port opens.
    """
    sections = parse_overrides(overrides)
    for setting, value in flags.items():
        if value is not None:
            section, _, key = setting.partition(".")
            sections.setdefault(section, {})[key] = value
    config = load(ServiceConfig, file=file, overrides=sections)
    logs.configure(config.log)
    run(config, on_started=lambda started: _show(started, config, console) if console.is_terminal else None)


def token(name: str, scopes: Sequence[str], *, console: Console) -> None:
    """Print a new token, and to `console` its caller's lines for the file of callers.

    Raises ConfigError for a scope that there isn't.
    """
    for scope in scopes:
        if scope not in get_args(Scope):
            raise ConfigError(f"--scope {scope}: expected one of {', '.join(get_args(Scope))}")
    made = new_token()
    print(made)
    # In JSON's strings and lists, which are TOML's too.
    console.print(f"[{json.dumps(name)}]", markup=False)
    console.print(f"scopes = {json.dumps(scopes)}", markup=False)
    console.print(f"tokens = {json.dumps([hashed(made)])}", markup=False)


def _show(started: Started, config: ServiceConfig, console: Console) -> None:
    table = Table("model", "version", "takes", "decides at", box=None, header_style="bold", pad_edge=False)
    for model in started.repository:
        takes = "; ".join(
            f"{spec.name}, {' x '.join(map(str, spec.shape[1:]))}" for spec in model.manifest.signature.inputs
        )
        table.add_row(model.name, model.version, takes, f"p <= {model.manifest.false_positive_rate:g}")
    console.print(table)
    console.print(f"gRPC   {config.server.address(started.grpc_port)}", markup=False)
    console.print(f"HTTP   {config.server.address(started.http_port)}   /metrics /livez /readyz", markup=False)
    console.print(
        f"runs   {started.runners} runners on {config.runtime.device}, batches of {config.batching.max_rows} rows, "
        f"{config.limits.queue_rows} may wait"
    )
    console.print("Ctrl-C or SIGTERM drains and stops.")
