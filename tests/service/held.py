"""A service in this process, with real sockets and sessions, whose calls of ONNX Runtime a test counts and holds up."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.service.test_server import get
from vaeserve.config import load
from vaeserve_service.config import ServiceConfig
from vaeserve_service.model import Model
from vaeserve_service.server import Started, serve

Feeds = dict[str, NDArray[Any]]


class HeldSession:
    """ONNX Runtime's own session: what it is given is kept, and each run waits until a test lets it."""

    def __init__(self, session: Any) -> None:
        self.runs: list[Feeds] = []
        self.breaks: Callable[[Feeds], bool] = lambda _: False
        self._session = session
        self._allowed = threading.Semaphore(0)

    def run(self, outputs: list[str], feeds: Feeds) -> list[NDArray[Any]]:
        """Run the graph once it may; raise RuntimeError if it is to break."""
        self.runs.append(feeds)
        assert self._allowed.acquire(timeout=60)
        if self.breaks(feeds):
            raise RuntimeError("broken on purpose")
        computed: list[NDArray[Any]] = self._session.run(outputs, feeds)
        return computed

    def let(self, runs: int = 1_000_000) -> None:
        """Let so many more runs end; by default, all."""
        self._allowed.release(runs)

    @property
    def rows(self) -> NDArray[Any]:
        """The numbers of all rows of all runs, in their order."""
        return np.concatenate([run["numeric"] for run in self.runs])


@dataclass(frozen=True)
class HeldService:
    """A service of one model, and the session that scores its rows."""

    target: str
    http: str
    model: Model
    scorer: HeldSession
    stop: asyncio.Event
    ended: asyncio.Task[None]

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait, until pytest's time is up, for what the running service should come to."""
        while not true():
            assert not self.ended.done()
            await asyncio.sleep(0.001)

    async def until_told(self, line: str) -> None:
        """Wait until a line is among the metrics."""
        while f"\n{line}\n" not in (await asyncio.to_thread(get, f"{self.http}/metrics"))[1]:
            assert not self.ended.done()


@asynccontextmanager
async def serving(repository: Path, name: str, **sections: dict[str, Any]) -> AsyncIterator[HeldService]:
    """Serve a model on one runner whose calls are held, with further settings; let them go and drain at the end."""
    config = load(
        ServiceConfig,
        overrides={
            "repository": {"path": repository, "models": (name,)},
            "server": {"host": "127.0.0.1", "grpc_port": 0, "http_port": 0},
            "runtime": {"runners": 1},
            **sections,
        },
    )
    stop, started = asyncio.Event(), asyncio.get_running_loop().create_future()
    ended = asyncio.create_task(serve(config, stop=stop, on_started=started.set_result))
    await asyncio.wait({ended, started}, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        await ended
    service: Started = started.result()
    model = service.repository.get(name)
    scorer = _hold(model)
    try:
        yield HeldService(
            f"127.0.0.1:{service.grpc_port}", f"http://127.0.0.1:{service.http_port}", model, scorer, stop, ended
        )
    finally:
        scorer.let()
        stop.set()
        await ended


def _hold(model: Model) -> HeldSession:
    graphs: Any = model._batcher._compute
    graph = graphs.runtime._elbo
    graph._session = HeldSession(graph._session)
    held: HeldSession = graph._session
    return held
