"""A thread that nobody waits for."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Daemon(Executor):
    """One thread, which does one thing at a time and ends with the process, whatever it is doing.

    A pool's threads are joined as the process ends: one that reads from a volume that hangs would hold it for ever.
    """

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a function called."""
        future: Future[T] = Future()
        self._work.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """End once what was submitted is done, and don't wait for that, whatever `wait` says."""
        del wait, cancel_futures
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            _do(*work)
            del work  # so that an idle thread keeps no model alive


def _do(future: Future[T], call: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except BaseException as error:  # whatever it is, who waits must hear of it
            future.set_exception(error)
