"""Running a job from its first look at the input to `_SUCCESS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vaeserve.errors import ConfigError
from vaeserve.files import is_url, would_read
from vaeserve.source import BUILT_IN, Source, open_source
from vaeserve_jobs.engine import Engine, Stop, Watch
from vaeserve_jobs.job import Job, Skipped, output_schema
from vaeserve_jobs.model import Address, Model
from vaeserve_jobs.plan import Plan, make_plan
from vaeserve_jobs.store import Store
from vaeserve_jobs.summary import PLAN, SUCCESS, SUMMARY, Summary, finish, read_summary, read_tallies
from vaeserve_jobs.task import Score, Task

Turn = tuple[int, int]


@dataclass(frozen=True)
class Order:
    """What is asked for.

    keep: columns to carry through. resume: go on where a job to the same place stopped. turn: (i, n), where n processes
    share the job, and this one runs the shards that leave i when divided by n; they join each other's place.
    """

    input: str
    out: str
    address: Address
    task: Task
    keep: Sequence[str] = ()
    resume: bool = False
    turn: Turn | None = None
    shard_rows: int | None = None
    skip_bad_files: bool = False


def run(
    order: Order,
    engine_for: Callable[[Model], Engine],
    *,
    watch: Watch,
    stop: Stop,
    told: Callable[[], dict[str, Any]] = dict,
) -> Summary | None:
    """Run a job, or this process's part of it, and finish it if all shards are done then; None if they aren't.

    told: what the summary is to say of this process. Raises ConfigError for an output that is another job's or holds
    other files, what `make_plan` raises, DataError for a file that can't be read after all, and StoppedError once
    `stop` is set; what is done stays, and can be resumed.
    """
    store = Store(order.out)
    _refuse_taken(store, order)
    model = _pinned(order.address, store).open()
    try:
        if isinstance(order.task, Score):
            model.check(order.task.options)
        job = make_job(order, model)
        _try_first_rows(job, model)
        store.make()
        _write_plan(store, job.plan)
        if SUCCESS in store.names():
            return read_summary(store)
        shards = _shards_to_run(store, job.plan, order.turn)
        watch.begin(job.plan, shards)
        engine_for(model).run(job, shards, watch=watch, stop=stop)
    finally:
        model.close()
    if order.turn and any(tally is None for _, tally in read_tallies(store, job.plan, range(len(job.plan.shards)))):
        return None
    return finish(store, job.plan, run=told())


def finish_only(out: str) -> Summary:
    """Finish a job whose shards are done, at `out`; raises RefusedError if they aren't, ConfigError for no job."""
    store = Store(out)
    if PLAN not in store.names():
        raise ConfigError(f"--out {out}: has no {PLAN}; expected the output of a job")
    return finish(store, Plan.read(store.read(PLAN), f"{out}/{PLAN}"), run={})


def make_job(order: Order, model: Model) -> Job:
    """Look at the input, and plan."""
    source = typed(open_source(order.input), model)
    if order.skip_bad_files and source.is_images:  # are read many at a time: good ones would go with a bad one
        raise ConfigError(f"--skip-bad-files: {order.input} is of images; expected a table")
    source.require(order.keep)
    # As text what is carried through stays as it is written: `00123` as a number wouldn't.
    features = {column.name for column in model.signature.columns}
    source = source.as_text([name for name in order.keep if name in source.guessed - features])
    schema = output_schema(source, model, order.task, order.keep)
    plan = make_plan(
        source,
        model,
        order.task,
        keep=order.keep,
        shard_rows=order.shard_rows,
        skip_bad_files=order.skip_bad_files,
    )
    return Job(
        plan=plan,
        source=source,
        task=order.task,
        schema=schema,
        signature=model.signature,
        out=_anywhere(order.out),
        address=replace(order.address, version=model.identity.version) if order.address.server else order.address,
        skip_bad_files=order.skip_bad_files,
    )


def _try_first_rows(job: Job, model: Model) -> None:
    """Raise, before anything is written, what the model has against the first rows or what is asked of it."""
    for batch in job.read(0):
        if not isinstance(batch, Skipped):
            job.inputs(batch)
            job.compute(model, batch[:1])
        return


def typed(source: Source, model: Model) -> Source:
    """Return a source with the model's columns read as the model takes them."""
    source = source.as_numbers([column.name for column in model.signature.numeric_columns])
    return source.as_text([column.name for column in model.signature.categorical_columns])


def _refuse_taken(store: Store, order: Order) -> None:
    """Raise ConfigError, before anything is loaded, for an output that isn't free."""
    if order.input not in BUILT_IN and would_read(order.input, order.out):
        raise ConfigError(f"--out {order.out}: lies in the input, whose rows it would be; expected a folder elsewhere")
    names = store.names()
    joins = order.resume or order.turn
    if names and not joins:
        hint = "--resume, or a folder that is new or empty" if PLAN in names else "a folder that is new or empty"
        raise ConfigError(f"--out {order.out}: has {names[0]} in it; expected {hint}")
    if names and PLAN not in names:
        raise ConfigError(f"--out {order.out}: has {names[0]} in it and no {PLAN}; expected the output of a job")


def _pinned(address: Address, store: Store) -> Address:
    """Return the address of the version that the job began with, where it did and a service may have a newer one."""
    if address.server is None or PLAN not in store.names():
        return address
    began_with = Plan.read(store.read(PLAN), f"{store.name}/{PLAN}").model
    return replace(address, version=began_with.version) if began_with.name == address.name else address


def _write_plan(store: Store, plan: Plan) -> None:
    """Write the plan unless it is there; raises ConfigError, naming what is different, for another."""
    if store.put_once(PLAN, plan.content):
        return
    there = Plan.read(store.read(PLAN), f"{store.name}/{PLAN}")
    if there.fingerprint != plan.fingerprint:
        what = "; ".join(list(there.differences(plan))[:10])
        raise ConfigError(f"--out {store.name}: is of another job: {what}; expected the same, or another --out")


def _shards_to_run(store: Store, plan: Plan, turn: Turn | None) -> list[int]:
    place, processes = turn or (0, 1)
    tallies = read_tallies(store, plan, range(place, len(plan.shards), processes))
    return [shard for shard, tally in tallies if tally is None]


def _anywhere(name: str) -> str:
    """Return a name that means the same wherever a worker stands."""
    return name if is_url(name) else str(Path(name).absolute())


__all__ = ["PLAN", "SUCCESS", "SUMMARY", "Order", "finish_only", "make_job", "run"]
