"""`vaeserve score`: from a file of rows to a Parquet file of scores, said as it goes."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from vaeserve.errors import ConfigError
from vaeserve.progress import progress_bar
from vaeserve.scores import Bound, ScoreOptions
from vaeserve.source import open_source
from vaeserve_jobs.engine import Engine, LocalEngine, ServerEngine
from vaeserve_jobs.score import Summary, score_file


def score(
    data: str,
    out: Path,
    *,
    bundle: Path | None,
    server: str | None,
    model: str | None,
    keep: Sequence[str],
    options: dict[str, Any],
    console: Console,
    as_json: bool,
) -> None:
    """Score `data` into `out`. Raises as what it calls does, with nothing written."""
    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: expected a .parquet file")
    bounds = [bound.value for bound in Bound]
    if options["bound"] not in bounds:
        raise ConfigError(f"--bound {options['bound']}: expected {' or '.join(bounds)}")
    asked = ScoreOptions(**(options | {"bound": Bound(options["bound"])}))
    if out.exists() and Path(data).exists() and out.samefile(data):
        raise ConfigError(f"--out {out}: is the input; expected another file")
    source = open_source(data)
    engine = _engine(bundle, server, model)
    started = time.monotonic()
    try:
        with progress_bar(console, "rows") as progress:
            task = progress.add_task("scoring", total=source.rows)

            def show(summary: Summary) -> None:
                progress.update(task, completed=summary.rows)

            summary = score_file(source, out, engine=engine, options=asked, keep=keep, on_batch=show)
    finally:
        engine.close()
    if as_json:
        print(json.dumps({"out": str(out), **asdict(summary)}))
        return
    rate = summary.rows / max(time.monotonic() - started, 1e-9)
    console.print(
        f"{summary.rows} rows, {summary.anomalous} anomalous, {summary.unscorable} unscorable, {rate:.0f} rows/s"
    )
    console.print(f"wrote {escape(str(out))}")


def _engine(bundle: Path | None, server: str | None, model: str | None) -> Engine:
    if bundle is not None and server is None and model is None:
        return LocalEngine.open(bundle)
    if server is not None and model is not None and bundle is None:
        return ServerEngine(server, model)
    raise ConfigError("expected either --bundle DIR, or --server HOST:PORT with --model NAME")
