"""Calls that give something for each row: a few are joined with others', many are sent in parts."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from vaeserve import messages
from vaeserve.calls import Calls, Deadline
from vaeserve.coalescing import Coalescer
from vaeserve.errors import NotFoundError, OutOfRangeError
from vaeserve.messages import ModelInfo
from vaeserve.parts import MOST_BYTES, Arrays, cut, joined, part_rows, row_count
from vaeserve.scores import ScoreOptions, Scores
from vaeserve.signature import Rows, array_of
from vaeserve.signatures import Signatures, Versioned
from vaeserve.streaming import ScoreStream
from vaeserve.transport import Method, Transport
from vaeserve.v1 import vae_pb2 as pb

R = TypeVar("R", bound=Versioned)

_DEFAULTS = ScoreOptions()

# Asks the service for a model's version, within a deadline.
Ask = Callable[[str, str, Deadline], Awaitable[ModelInfo]]

# Parts of one input that are under way at once.
IN_FLIGHT = 4


@dataclass(frozen=True)
class Rpc(Generic[R]):
    """A call with rows.

    name: of the RPC with its options; calls of one name may be joined. streamed: its stream, if there is one.
    """

    name: Hashable
    method: Method
    request: Callable[[pb.ModelSpec, Arrays], Any]
    read: Callable[[Any], R]
    streamed: Method | None = None
    options: ScoreOptions = _DEFAULTS

    def part_rows(self, inputs: Arrays) -> int:
        """Return how many of these rows make a part."""
        samples = self.options.num_samples or 1
        return part_rows(inputs, num_samples=samples, top_features=self.options.top_features)


class Rowwise:
    """Makes calls with rows of any form and number."""

    def __init__(self, calls: Calls, transport: Transport, coalescer: Coalescer[Any], *, ask: Ask) -> None:
        self._calls = calls
        self._transport = transport
        self._coalescer = coalescer
        self._signatures = Signatures()
        self._ask = ask

    async def over_rows(self, rpc: Rpc[R], model: str, version: str, rows: Rows, deadline: Deadline) -> R:
        """Return the result for rows; columns are matched by name."""
        if isinstance(rows, np.ndarray | list | tuple):
            return await self.over_arrays(rpc, model, version, {"": array_of(rows)}, deadline)
        messages.spec(model, version)  # refuses what is no text, by which nothing can be remembered
        return await self._signatures.call(
            model,
            version,
            rows,
            send=lambda pinned, inputs: self.over_arrays(rpc, model, pinned, inputs, deadline),
            ask=lambda name, asked: self._ask(name, asked, deadline),
        )

    async def over_arrays(self, rpc: Rpc[R], model: str, version: str, inputs: Arrays, deadline: Deadline) -> R:
        """Return the result for input tensors; the empty name stands for the only one that there is.

        Where they are sent in parts, each has all the time of the deadline.
        """
        spec = messages.spec(model, version)
        if self._coalescer.takes(inputs):
            form = [(name, array.dtype, array.shape[1:]) for name, array in inputs.items()]
            send = partial(self._send, rpc, spec)
            own: R = await self._coalescer.call((rpc.name, model, version, *form), inputs, send, deadline)
            return own
        rows = rpc.part_rows(inputs)
        if row_count(inputs) <= rows:
            try:
                return await self._send(rpc, spec, inputs, deadline)
            except OutOfRangeError:
                if rpc.streamed or row_count(inputs) < 2:
                    raise
                rows = row_count(inputs)  # which may give more than an answer can hold
        if rpc.streamed:
            scores: R = await self._streamed(rpc, model, version, inputs, deadline.seconds)
            return scores
        return await self._in_parts(rpc, model, version, inputs, rows, deadline.seconds)

    async def stream(
        self,
        rpc: Rpc[Scores],
        model: str,
        version: str,
        batches: Any,
        *,
        in_flight: int,
        seconds: float,
        name: Callable[[int], str] = "batches[{}]: ".format,
    ) -> AsyncGenerator[Scores, None]:
        """Yield the scores of each batch of rows."""
        info = await self._current(model, version, seconds)

        def requests(batch: Rows) -> Iterator[pb.ScoreRequest]:
            spec, inputs = messages.spec(model, info.version), info.signature.inputs_from(batch)
            return (rpc.request(spec, part) for part in cut(inputs, rpc.part_rows(inputs)))

        async def renew() -> bool:
            nonlocal info
            before, info = info, info if version else await self._current(model, version, seconds)
            return info.version != before.version

        methods = (rpc.streamed or rpc.method, rpc.method)
        stream = ScoreStream(
            self._calls, self._transport, methods=methods, in_flight=in_flight, seconds=seconds, name=name
        )
        async with aclosing(stream.scores(batches, requests, renew)) as scored:
            async for scores in scored:
                yield scores

    async def _current(self, model: str, version: str, seconds: float) -> ModelInfo:
        return await self._ask(model, version, Deadline.after(seconds))

    async def _send(self, rpc: Rpc[R], spec: pb.ModelSpec, inputs: Arrays, deadline: Deadline) -> R:
        return rpc.read(await self._calls.unary(rpc.method, rpc.request(spec, inputs), deadline))

    async def _streamed(self, rpc: Rpc[Any], model: str, version: str, inputs: Arrays, seconds: float) -> Any:
        rows = inputs.get("", inputs)
        scored = self.stream(rpc, model, version, [rows], in_flight=IN_FLIGHT, seconds=seconds, name=lambda _: "")
        (scores,) = [scores async for scores in scored]
        return scores

    async def _in_parts(self, rpc: Rpc[R], model: str, version: str, inputs: Arrays, rows: int, seconds: float) -> R:
        """Return the result for parts of so many rows, all by one version; fewer where an answer would be too large."""
        pinned = version or (await self._current(model, version, seconds)).version
        try:
            return await self._pinned_parts(rpc, model, pinned, inputs, rows, seconds)
        except NotFoundError:
            if pinned == version or (now := (await self._current(model, version, seconds)).version) == pinned:
                raise
        return await self._pinned_parts(rpc, model, now, inputs, rows, seconds)

    async def _pinned_parts(
        self, rpc: Rpc[R], model: str, version: str, inputs: Arrays, rows: int, seconds: float
    ) -> R:
        spec = messages.spec(model, version)
        results: list[R] = []
        done = 0
        while done < row_count(inputs):
            requests = (rpc.request(spec, part) for part in cut(inputs, rows, start=done))
            answers = self._calls.in_order(rpc.method, requests, seconds=seconds, in_flight=IN_FLIGHT)
            try:
                async with aclosing(answers):
                    async for answer in answers:
                        results.append(rpc.read(answer))
                        done += rows
            except OutOfRangeError:
                # What a row gives, only the service knows; one that is too large by itself is out of range again.
                first = rpc.request(spec, next(cut(inputs, 1, start=done)))
                answer = await self._calls.unary(rpc.method, first, Deadline.after(seconds))
                results.append(rpc.read(answer))
                done += 1
                rows = max(1, min(rows // 2, MOST_BYTES // answer.ByteSize()))
        return joined(results)
