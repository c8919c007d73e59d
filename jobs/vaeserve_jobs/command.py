"""`vaeserve score`, `encode`, `reconstruct`, `generate` and `interpolate`: jobs, said as they go."""

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from vaeserve.errors import ConfigError
from vaeserve.latents import Interpolation
from vaeserve.progress import progress_bar
from vaeserve.scores import Bound, ScoreOptions
from vaeserve.source import open_source
from vaeserve_jobs import summary
from vaeserve_jobs.cluster import RayEngine
from vaeserve_jobs.engine import Engine, LocalEngine, StoppedError
from vaeserve_jobs.generate import generate_file, interpolate_file
from vaeserve_jobs.model import Address, LocalModel, Model, ServerModel
from vaeserve_jobs.progress import Bar, Lines, Meter, MetricsFile, Show
from vaeserve_jobs.run import Order, Turn, finish_only, run
from vaeserve_jobs.task import Encode, Reconstruct, Score, Task
from vaeserve_service.cpus import available_cpus

MOST_TOP = 10_000
LEAST_MEMORY = 64 * 2**20
# Calls that a service has at once: enough for it to compute one while others are on their way.
SERVER_CALLS = 4

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Way:
    """How a job is run: nothing of it changes what is written."""

    engine: str
    workers: int | None
    memory: str
    metrics_file: Path | None
    as_json: bool


def score(said: Mapping[str, Any], *, options: dict[str, Any], console: Console) -> None:
    """Score rows; raises as `run` does, and ConfigError for options that can't be."""
    bounds = [bound.value for bound in Bound]
    if options["bound"] not in bounds:
        raise ConfigError(f"--bound {options['bound']}: expected {' or '.join(bounds)}")
    if not 0 <= options["top"] <= MOST_TOP:
        raise ConfigError(f"--top {options['top']}: expected 0 to {MOST_TOP}")
    asked = {name: value for name, value in options.items() if name not in ("only_anomalous", "top")}
    task = Score(
        ScoreOptions(**(asked | {"bound": Bound(options["bound"])})), options["only_anomalous"], options["top"]
    )
    _run(_order(said, task), _way(said), console)


def encode(said: Mapping[str, Any], *, console: Console) -> None:
    """Encode rows; raises as `run` does."""
    _run(_order(said, Encode()), _way(said), console)


def reconstruct(said: Mapping[str, Any], *, console: Console) -> None:
    """Reconstruct rows; raises as `run` does."""
    _run(_order(said, Reconstruct()), _way(said), console)


def finish(out: str, *, console: Console, as_json: bool) -> None:
    """Write the summary of a job whose shards are done; raises as `finish_only` does."""
    _say(finish_only(out), out, console=console, as_json=as_json)


def _order(said: Mapping[str, Any], task: Task) -> Order:
    rest = {name: said[name] for name in ("out", "keep", "resume", "shard_rows", "skip_bad_files")}
    if said["input"] is None:
        raise ConfigError("expected an INPUT, but for --finish")
    bundle = None if said["bundle"] is None else str(said["bundle"].absolute())
    address = Address(bundle, said["server"], said["model"])
    return Order(said["input"], address=address, task=task, turn=turn_of(said["shard"], os.environ), **rest)


def _way(said: Mapping[str, Any]) -> Way:
    return Way(**{field.name: said[field.name] for field in fields(Way)})


def turn_of(said: str | None, environment: Mapping[str, str]) -> Turn | None:
    """Return which of how many processes this is: `I/N`, or `N` where Kubernetes gives the index.

    Raises ConfigError for anything else.
    """
    if said is None:
        return None
    place, slash, processes = said.rpartition("/")
    if not slash:
        place = environment.get("JOB_COMPLETION_INDEX", "")
        if not place:
            raise ConfigError(f"--shard {said}: expected I/N, or N where the environment has JOB_COMPLETION_INDEX")
    if not (place.isdecimal() and processes.isdecimal() and int(place) < int(processes)):
        raise ConfigError(f"--shard {place}/{processes}: expected I/N, with I from 0 to N - 1")
    return int(place), int(processes)


def bytes_of(said: str) -> int:
    """Return the bytes of a size such as 512MiB or 2G; raises ConfigError for none, and for one that is too small."""
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?", said.strip(), re.IGNORECASE)
    if size is None:
        raise ConfigError(f"--memory {said}: expected a size such as 512MiB or 2GiB")
    memory = int(float(size[1]) * _UNITS[size[2].upper()])
    if memory < LEAST_MEMORY:
        raise ConfigError(f"--memory {said}: expected {LEAST_MEMORY // 2**20}MiB or more")
    return memory


def _run(order: Order, way: Way, console: Console) -> None:
    engine_for = _engine_for(way, bytes_of(way.memory))
    with ExitStack() as shown:
        shows: list[Show] = []
        if console.is_terminal:
            shows.append(shown.enter_context(Bar(console, order.task.to_json()["kind"])))
        else:
            shows.append(Lines(lambda line: print(line, file=sys.stderr, flush=True)))
        if way.metrics_file:
            labels = {"job": Path(order.out).name}
            shows.append(MetricsFile(way.metrics_file, labels, lambda what: console.print(what, markup=False)))
        meter = Meter(*shows)

        def told() -> dict[str, Any]:
            return {"rows": meter.counted, "seconds": round(meter.seconds, 3), "rows_per_s": round(meter.rows_per_s)}

        stop = Signal(at_once=lambda: not meter.has_begun)
        try:
            with stop.caught():
                done = run(order, engine_for, watch=meter, stop=stop, told=told)
        except StoppedError:
            shown.close()
            so_far = (
                f"{meter.shards_done} of {meter.shards} shards are done" if meter.has_begun else "no shard had begun"
            )
            console.print(f"stopped: {so_far}; --resume goes on")
            sys.exit(128 + stop.number)
        meter.end()
    if done is None:
        _say_part(meter, order.out, console=console, as_json=way.as_json)
    else:
        _say(done, order.out, console=console, as_json=way.as_json)


def _engine_for(way: Way, memory: int) -> Callable[[Model], Engine]:
    """Return what makes the engine for a model; raises ConfigError or MissingExtraError where there is none."""
    if way.engine == "ray":
        cluster = RayEngine(workers=way.workers, memory=memory)
        return lambda _: cluster
    if way.engine != "local":
        raise ConfigError(f"--engine {way.engine}: expected local or ray")

    def local(model: Model) -> LocalEngine:
        workers = way.workers or (SERVER_CALLS if isinstance(model, ServerModel) else available_cpus())
        return LocalEngine(model, workers=workers, memory=memory)

    return local


class Signal(threading.Event):
    """Set by SIGTERM and SIGINT.

    number: the signal's. at_once: tells whether it is to raise StoppedError where it comes, too: while nobody looks at
    it, and nothing can be left half-done.
    """

    def __init__(self, *, at_once: Callable[[], bool]) -> None:
        super().__init__()
        self.number = 0
        self._at_once = at_once

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Be set by signals; a second one ends the process at once."""
        before = {number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, _: object) -> None:
        self.number = number
        self.set()
        signal.signal(number, signal.SIG_DFL)
        if self._at_once():
            raise StoppedError


def _say(done: summary.Summary, out: str, *, console: Console, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"out": out, **done}))
        return
    summary.show(done, console)
    if rate := done["run"].get("rows_per_s"):
        console.print(f"{done['run']['rows']} rows in {done['run']['seconds']:.1f} s, {rate} rows/s")
    console.print(f"wrote {escape(out)}")


def _say_part(meter: Meter, out: str, *, console: Console, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"out": out, "shards_done": meter.shards_done, "rows": meter.counted, "finished": False}))
    else:
        console.print(f"{meter.shards_done} shards are done; others aren't yet: the last to finish writes the summary")


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
    with _model(bundle, server, model) as coder, ExitStack() as shown:
        progress = progress_bar(console, "rows")
        task = progress.add_task("generating", total=count)

        def show(rows: int) -> None:
            if not progress.live.is_started:  # with the first batch: what was asked for is known to be possible
                shown.enter_context(progress)
            progress.advance(task, rows)

        generate_file(out, coder=coder, count=count, seed=seed, temperature=temperature, on_batch=show)
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
    with _model(bundle, server, model) as coder:
        interpolate_file(source, out, coder=coder, start=start, end=end, steps=steps, method=Interpolation(method))
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
def _model(bundle: Path | None, server: str | None, model: str | None) -> Iterator[LocalModel | ServerModel]:
    """Yield what computes, and close it; raises ConfigError for none, and for two."""
    with closing(Address(None if bundle is None else str(bundle), server, model).open()) as opened:
        yield opened
