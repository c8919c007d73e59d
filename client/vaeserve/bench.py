"""How much a service does, and how fast: so many callers at once, each with a call as soon as its last is answered.

What is sent are rows that the model invents, so it takes no data. A service that slows down is sent less: calls take
what they take for so many callers.
"""

import asyncio
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console

from vaeserve.client import AsyncClient
from vaeserve.errors import InvalidInputError, VaeserveError

QUANTILES = (0.5, 0.9, 0.99, 1.0)
# Before anything counts, seconds: until connections are up and the service knows how many callers there are.
WARM_UP_S = 1.0
# Whose call failed comes again after so many seconds.
FAILED_S = 0.05
# Of a processor: a process that is busier may be what the figures are of.
BUSY = 0.9


@dataclass(frozen=True)
class Load:
    """What is asked: `callers` at once, of `rows` each, for `seconds`; coalesce_ms: as in `AsyncClient`."""

    callers: int = 64
    rows: int = 1
    seconds: float = 10.0
    coalesce_ms: float = 0.0
    seed: int = 0


@dataclass
class Measured:
    """What came of a load.

    latencies: of each call that was answered, seconds. failed: calls that weren't, by their error's name. busy: this
    process's share of a processor.
    """

    model: str
    version: str
    load: Load
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    failed: Counter[str] = field(default_factory=Counter)
    busy: float = 0.0

    @property
    def requests_per_s(self) -> float:
        """How many calls were answered a second."""
        return len(self.latencies) / self.load.seconds

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it; latencies are seconds, by quantile."""
        return {
            "model": self.model,
            "version": self.version,
            "callers": self.load.callers,
            "rows_per_request": self.load.rows,
            "seconds": self.load.seconds,
            "coalesce_ms": self.load.coalesce_ms,
            "requests": len(self.latencies),
            "requests_per_s": round(self.requests_per_s, 1),
            "rows_per_s": round(self.requests_per_s * self.load.rows, 1),
            "latency_s": {f"{level:g}": value for level, value in self.quantiles().items()},
            "failed": dict(self.failed),
            "client_busy": round(self.busy, 2),
        }

    def quantiles(self) -> dict[float, float]:
        """Return the latencies, seconds, that a share of all calls kept; none where no call was answered."""
        if not self.latencies:
            return {}
        return {level: float(np.quantile(self.latencies, level, method="inverted_cdf")) for level in QUANTILES}

    def show(self, console: Console) -> None:
        """Say it to a person."""
        load = self.load
        console.print(
            f"{self.model}, version {self.version}: {load.callers} calls at once of {load.rows} "
            f"row{'' if load.rows == 1 else 's'}, {load.seconds:g} s"
        )
        per_s = self.requests_per_s
        console.print(f"{per_s:,.0f} requests/s, {per_s * load.rows:,.0f} rows/s, {self.failed.total()} failed")
        for name, count in self.failed.most_common():
            console.print(f"  {name}: {count}")
        if found := self.quantiles():
            said = ", ".join(f"{1000 * value:.2f} (p{100 * level:g})" for level, value in found.items())
            console.print(f"a call took, ms: {said}")
        if self.busy > BUSY:
            console.print(
                f"this process took {self.busy:.0%} of a processor, and may be what limits: run several at once, or "
                "let it join calls by --coalesce-ms"
            )


def bench(target: str, model: str, *, version: str = "", load: Load) -> Measured:
    """Load a service, and return what came of it.

    Raises InvalidInputError for a load that can't be, what `AsyncClient.generate` does for the model, and the last
    error where no call was answered.
    """
    if not (load.callers > 0 and load.rows > 0 and load.seconds > 0):
        raise InvalidInputError(
            f"a load of {load.callers} callers, {load.rows} rows, {load.seconds:g} s; expected more than 0 of each"
        )
    return asyncio.run(_bench(target, model, version, load))


async def _bench(target: str, model: str, version: str, load: Load) -> Measured:
    # Retries would hide refusals in the times of calls.
    async with AsyncClient(target, coalesce_ms=load.coalesce_ms, retry=False) as client:
        made = await client.generate(model, load.rows, version=version, seed=load.seed)
        info = await client.model(model, version=made.version)
        rows = {spec.name: made.outputs[spec.name] for spec in info.signature.inputs}
        run = _Run(client, Measured(made.model, made.version, load), rows)
        await run.until(WARM_UP_S, counted=False)
        busy = time.process_time()
        await run.until(load.seconds, counted=True)
        run.measured.busy = (time.process_time() - busy) / load.seconds
        if run.error is not None and not run.measured.latencies:
            raise run.error
        return run.measured


class _Run:
    """The callers, and what they met."""

    def __init__(self, client: AsyncClient, measured: Measured, rows: dict[str, Any]) -> None:
        self.measured = measured
        self.error: VaeserveError | None = None
        self._client = client
        self._rows = rows

    async def until(self, seconds: float, *, counted: bool) -> None:
        """Let the callers call for so many seconds; a call that ends later doesn't count."""
        end = time.perf_counter() + seconds
        async with asyncio.TaskGroup() as callers:
            for _ in range(self.measured.load.callers):
                callers.create_task(self._call(end, counted=counted))

    async def _call(self, end: float, *, counted: bool) -> None:
        measured = self.measured
        began = time.perf_counter()
        while began < end:
            try:
                await self._client.score(measured.model, self._rows, version=measured.version)
            except VaeserveError as error:
                self.error = error
                measured.failed[type(error).__name__] += counted
                await asyncio.sleep(FAILED_S)
            else:
                ended = time.perf_counter()
                if counted and ended <= end:
                    measured.latencies.append(ended - began)
            began = time.perf_counter()
