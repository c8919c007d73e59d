"""Threads that nobody waits for."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Seconds in which an idle thread ends.
_MOMENT_S = 0.2


class DaemonThread(threading.Thread):
    """A thread that ends with the process."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)


class Daemon(Executor):
    """One thread, which does one thing at a time and ends with the process, whatever it is doing.

    A pool's threads are joined as the process ends: one that reads from a volume that hangs would hold it for ever.
    """

    def __init__(self, name: str) -> None:
        self._thread = _Thread(name)
        self._thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a function called."""
        future: Future[T] = Future()
        self._thread.work.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End once what was submitted is done; wait for that a moment at most."""
        del cancel_futures
        self._thread.work.put(None)
        if wait:
            self._thread.join(_MOMENT_S)


def end_if_one_works() -> None:
    """End this process with 0, at once, if a daemon thread of ours is still at work.

    Python's own end would stop it in the midst of native code, as ONNX Runtime's, which then aborts the process.
    """
    if any(isinstance(thread, DaemonThread) for thread in threading.enumerate()):
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError):  # who reads it has gone
                stream.flush()
        os._exit(0)


class _Thread(DaemonThread):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def run(self) -> None:
        """Do what comes, until there is no more."""
        while (work := self.work.get()) is not None:
            _do(*work)
            del work  # so that an idle thread keeps no model alive


def _do(future: Future[T], call: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except BaseException as error:  # whatever it is, who waits must hear of it
            future.set_exception(error)
