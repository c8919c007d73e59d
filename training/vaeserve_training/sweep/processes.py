"""Work in processes of its own, side by side, which end with the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

from vaeserve.errors import OperatorError, VaeserveError

T = TypeVar("T")
# What work tells of itself while it lasts.
Report = Callable[[Any], None]

# What Python with PyTorch takes before it has done anything.
PROCESS_BYTES = 600 * 2**20


def side_by_side(
    work: Callable[[T, Report], None],
    tasks: Sequence[T],
    *,
    jobs: int,
    on_report: Callable[[T, Any], None] = lambda _task, _said: None,
) -> None:
    """Do `work(task, report)` for each task in a process of its own, in order, at most `jobs` at a time.

    Raises what the first to fail raised, OperatorError for one that was killed; the others are ended then, as they
    are if this is interrupted. If this process is killed, they end by themselves.
    """
    # From a server that has PyTorch loaded and no threads, which don't survive a fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, work.__module__])
    waiting = list(tasks)
    running: dict[Connection, tuple[T, ForkServerProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_do, args=(work, waiting[0], there), daemon=True)
                process.start()
                there.close()
                running[here] = waiting.pop(0), process
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)  # noqa: S101 - it waits for nothing else
                _listen(connection, running, on_report)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def jobs_for(tasks: int, *, bytes_each: int) -> int:
    """Return how many tasks fit side by side: one a core, within the memory there is, and one at least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _free_bytes()
    fitting = cores if memory is None else min(cores, memory // (PROCESS_BYTES + bytes_each))
    return max(1, min(tasks, fitting))


def _listen(
    connection: Connection, running: dict[Connection, tuple[T, ForkServerProcess]], on_report: Callable[[T, Any], None]
) -> None:
    """Take what a process says; raise the error it ended with."""
    task, process = running[connection]
    try:
        what, said = connection.recv()
    except EOFError:
        process.join()
        raise OperatorError(
            f"{task}: its process ended with {process.exitcode}, as it does where memory runs out; expected it to "
            "finish: --resume goes on, with fewer --jobs"
        ) from None
    if what == "said":
        on_report(task, said)
        return
    del running[connection]
    process.join()
    if what == "failed":
        raise said


def _do(work: Callable[[T, Report], None], task: T, connection: Connection) -> None:
    """Do a task in this process, and tell the one that started it how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is for the one that started it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(task, lambda said: connection.send(("said", said)))
    except VaeserveError as error:
        connection.send(("failed", error))
    else:
        connection.send(("done", None))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - a process of `side_by_side`
    wait([parent.sentinel])
    os._exit(1)  # at once: whatever it writes is whole or not there


def _free_bytes() -> int | None:
    """Return the bytes of memory that are free here, also within a container's limit; None where no one says."""
    free = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # not Linux, or no limit
        pass
    return min(free, default=None)
