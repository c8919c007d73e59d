"""`vaeserve serve` and `token`: settings to a running service, with one screen for whoever starts it by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from vaeserve.config import load, parse_overrides
from vaeserve.errors import ConfigError
from vaeserve_service import logs
from vaeserve_service.callers import hashed, new_token
from vaeserve_service.config import Scope, ServiceConfig
from vaeserve_service.screen import show
from vaeserve_service.server import run


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
    run(config, on_started=lambda started: show(started, config, console) if console.is_terminal else None)


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
