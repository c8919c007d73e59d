"""`vaeserve score`, `generate` and `interpolate`: files of scores and of invented rows, said as they go."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from vaeserve.errors import ConfigError
from vaeserve.latents import Interpolation
from vaeserve.progress import progress_bar
from vaeserve.scores import Bound, ScoreOptions
from vaeserve.source import open_source
from vaeserve_jobs.engine import LocalEngine, ServerEngine
from vaeserve_jobs.generate import generate_file, interpolate_file
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
    _refuse_same(out, data)
    source = open_source(data)
    with _engine(bundle, server, model) as engine, progress_bar(console, "rows") as progress:
        started = time.monotonic()
        task = progress.add_task("scoring", total=source.rows)

        def show(summary: Summary) -> None:
            progress.update(task, completed=summary.rows)

        summary = score_file(source, out, engine=engine, options=asked, keep=keep, on_batch=show)
    if as_json:
        print(json.dumps({"out": str(out), **asdict(summary)}))
        return
    rate = summary.rows / max(time.monotonic() - started, 1e-9)
    console.print(
        f"{summary.rows} rows, {summary.anomalous} anomalous, {summary.unscorable} unscorable, {rate:.0f} rows/s"
    )
    console.print(f"wrote {escape(str(out))}")


def generate(
    out: Path,
    *,
    bundle: Path | None,
    server: str | None,
    model: str | None,
    count: int,
    seed: int,
    temperature: float,
    console: Console,
    as_json: bool,
) -> None:
    """Write `count` invented rows to `out`. Raises as what it calls does, with nothing written."""
    with _engine(bundle, server, model) as engine, ExitStack() as shown:
        progress = progress_bar(console, "rows")
        task = progress.add_task("generating", total=count)

        def show(rows: int) -> None:
            if not progress.live.is_started:  # with the first batch: what was asked for is known to be possible
                shown.enter_context(progress)
            progress.advance(task, rows)

        generate_file(out, coder=engine, count=count, seed=seed, temperature=temperature, on_batch=show)
    _say_written(out, count, console=console, as_json=as_json)


def interpolate(
    data: str,
    out: Path,
    *,
    bundle: Path | None,
    server: str | None,
    model: str | None,
    start: int,
    end: int,
    steps: int,
    method: str,
    console: Console,
    as_json: bool,
) -> None:
    """Write the rows between two of `data` to `out`. Raises as what it calls does, with nothing written."""
    methods = [way.value for way in Interpolation]
    if method not in methods:
        raise ConfigError(f"--method {method}: expected {' or '.join(methods)}")
    _refuse_same(out, data)
    source = open_source(data)
    with _engine(bundle, server, model) as engine:
        interpolate_file(source, out, coder=engine, start=start, end=end, steps=steps, method=Interpolation(method))
    _say_written(out, steps, console=console, as_json=as_json)


def _say_written(out: Path, rows: int, *, console: Console, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"out": str(out), "rows": rows}))
    else:
        console.print(f"wrote {rows} rows to {escape(str(out))}")


def _refuse_same(out: Path, data: str) -> None:
    """Raise ConfigError where the output would take the input's place."""
    if out.exists() and Path(data).exists() and out.samefile(data):
        raise ConfigError(f"--out {out}: is the input; expected another file")


@contextmanager
def _engine(bundle: Path | None, server: str | None, model: str | None) -> Iterator[LocalEngine | ServerEngine]:
    """Yield what computes, and close it; raises ConfigError for none, and for two."""
    engine: LocalEngine | ServerEngine
    if bundle is not None and server is None and model is None:
        engine = LocalEngine.open(bundle)
    elif server is not None and model is not None and bundle is None:
        engine = ServerEngine(server, model)
    else:
        raise ConfigError("expected either --bundle DIR, or --server HOST:PORT with --model NAME")
    with closing(engine):
        yield engine
