"""What both clients do, written once: the calls, by their names and options."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from functools import lru_cache, partial
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import ArrayLike

from vaeserve import messages
from vaeserve.calls import Calls, Deadline
from vaeserve.coalescing import Coalescer
from vaeserve.connection import Connection
from vaeserve.errors import InvalidInputError
from vaeserve.latents import Interpolation
from vaeserve.messages import Decoded, Encoded, Interpolated, ModelInfo, Reconstructed, Served
from vaeserve.retries import Retry
from vaeserve.rowwise import Rowwise, Rpc
from vaeserve.scores import Bound, ScoreOptions, Scores, refuse_outside
from vaeserve.signature import Rows, array_of
from vaeserve.transport import Method, Transport
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceStub

# Messages that score_stream sends ahead of their answers.
STREAMED = 8


class Surface:
    """The methods of both clients, as coroutines that await nothing but their transport.

    Every method takes `timeout`, the seconds until it must have ended, retries and all; None is the client's own. An
    input that is sent in parts has as long for each of them. They raise InvalidInputError, NotFoundError or
    OutOfRangeError for the caller's faults, and for the service's OverloadedError, UnavailableError, DeadlineError or
    InternalError.
    """

    def __init__(
        self,
        channel: Any,
        transport: Transport,
        *,
        connection: Connection,
        timeout: float,
        coalesce_ms: float,
        retry: bool,
    ) -> None:
        if not (isinstance(coalesce_ms, int | float) and 0 <= coalesce_ms <= 1000):
            raise InvalidInputError(f"coalesce_ms: {coalesce_ms!r}; expected 0 to 1000, 0 to join no calls")
        self._stub: Any = VaeServiceStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)
        target = connection.target
        self._calls = Calls(transport, target=target, retry=Retry() if retry else None, metadata=connection.metadata)
        coalescer: Coalescer[Any] = Coalescer(transport, target=target, wait_s=coalesce_ms / 1000)
        self._rowwise = Rowwise(self._calls, transport, coalescer, ask=self._ask)
        self._known_scoring = lru_cache(maxsize=64, typed=True)(self._new_scoring)
        self._timeout = Deadline.after(timeout).seconds

    async def score(
        self,
        model: str,
        rows: Rows,
        *,
        version: str = "",
        num_samples: int | None = None,
        bound: Bound = Bound.ELBO,
        seed: int | None = None,
        false_positive_rate: float | None = None,
        top_features: int = 0,
        timeout: float | None = None,
    ) -> Scores:
        """Return how anomalous each row is.

        rows: an array [rows, columns] or of images [rows, channels, height, width], or named columns: a mapping of
        arrays or a dataframe, matched by name. num_samples, bound, seed, false_positive_rate: as in `ScoreOptions`.
        top_features: how many features to name for each row. version: "" for the newest.
        """
        rpc = self._scoring(num_samples, bound, seed, false_positive_rate, top_features)
        return await self._rowwise.over_rows(rpc, model, version, rows, self._deadline(timeout))

    async def score_stream(
        self,
        model: str,
        batches: Iterable[Rows] | AsyncIterable[Rows],
        *,
        version: str = "",
        num_samples: int | None = None,
        bound: Bound = Bound.ELBO,
        seed: int | None = None,
        false_positive_rate: float | None = None,
        top_features: int = 0,
        in_flight: int = STREAMED,
        timeout: float | None = None,
    ) -> AsyncGenerator[Scores, None]:
        """Yield the scores of each batch of rows, in order, over one stream; batches may have no end.

        batches: rows of any form. They are taken as room for them comes: `in_flight` messages, of 4 MiB at most, are
        sent ahead of their answers; with 1, each batch is answered before the next is taken. A stream that breaks is
        opened again, and goes on where it was. version: "" for the newest, and the next when that is served no more;
        a batch is scored by one version. timeout: the seconds that each answer may take. Options as for `score`.
        """
        rpc = self._scoring(num_samples, bound, seed, false_positive_rate, top_features)
        refuse_outside("in_flight", in_flight, int, 1, 1024)
        seconds = self._seconds(timeout)
        scored = self._rowwise.stream(rpc, model, version, batches, in_flight=in_flight, seconds=seconds)
        async with aclosing(scored):
            async for scores in scored:
                yield scores

    async def encode(self, model: str, rows: Rows, *, version: str = "", timeout: float | None = None) -> Encoded:
        """Return each row's posterior; rows as for `score`."""
        rpc = Rpc("Encode", self._stub.Encode, messages.encode_request, messages.read_encoded)
        return await self._rowwise.over_rows(rpc, model, version, rows, self._deadline(timeout))

    async def decode(
        self, model: str, latents: ArrayLike, *, version: str = "", timeout: float | None = None
    ) -> Decoded:
        """Return the reconstructions of `latents` [rows, latent]."""
        rpc = Rpc("Decode", self._stub.Decode, messages.decode_request, messages.read_decoded)
        inputs = {"latents": array_of(latents)}
        return await self._rowwise.over_arrays(rpc, model, version, inputs, self._deadline(timeout))

    async def reconstruct(
        self, model: str, rows: Rows, *, version: str = "", timeout: float | None = None
    ) -> Reconstructed:
        """Return the reconstruction at each row's posterior mean; rows as for `score`."""
        rpc = Rpc("Reconstruct", self._stub.Reconstruct, messages.reconstruct_request, messages.read_reconstructed)
        return await self._rowwise.over_rows(rpc, model, version, rows, self._deadline(timeout))

    async def generate(
        self,
        model: str,
        count: int,
        *,
        version: str = "",
        seed: int = 0,
        temperature: float = 1.0,
        timeout: float | None = None,
    ) -> Decoded:
        """Return `count` rows that the model invents: draws from N(0, I), times `temperature`, decoded.

        They are the decoder's means (or likeliest values), without the likelihood's own noise. The same seed gives the
        same rows. temperature: 0 to 100; below 1 the rows are more usual, above 1 less.
        """
        request = messages.generate_request(messages.spec(model, version), count, seed=seed, temperature=temperature)
        return messages.read_decoded(await self._call(self._stub.Generate, request, timeout))

    async def interpolate(
        self,
        model: str,
        start: ArrayLike,
        end: ArrayLike,
        *,
        version: str = "",
        steps: int = 11,
        method: Interpolation = Interpolation.LINEAR,
        timeout: float | None = None,
    ) -> Interpolated:
        """Return the reconstructions along the path between two latents, each [latent] or [1, latent].

        Between two rows: `client.interpolate(model, *client.encode(model, rows).mean)`. steps: how many, both ends
        among them. method: as in `vaeserve.latents.path`.
        """
        request = messages.interpolate_request(
            messages.spec(model, version), array_of(start), array_of(end), steps=steps, method=method
        )
        return messages.read_interpolated(await self._call(self._stub.Interpolate, request, timeout))

    async def models(self, *, timeout: float | None = None) -> list[Served]:
        """Return the models that are served."""
        request = pb.ListModelsRequest()
        return messages.read_models(await self._call(self._stub.ListModels, request, timeout))

    async def model(self, model: str, *, version: str = "", timeout: float | None = None) -> ModelInfo:
        """Return what a model takes, and its manifest."""
        return await self._ask(model, version, self._deadline(timeout))

    async def health(self, name: str = "", *, timeout: float | None = None) -> bool:
        """Tell whether the service as a whole, or the model `name`, serves now; nothing is tried again."""
        request = health_pb2.HealthCheckRequest(service=name)
        response = await self._calls.unary(self._health.Check, request, self._deadline(timeout), again=False)
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def _call(self, method: Method, request: Any, timeout: float | None) -> Any:
        return await self._calls.unary(method, request, self._deadline(timeout))

    async def _ask(self, model: str, version: str, deadline: Deadline) -> ModelInfo:
        request = pb.GetModelRequest(model=messages.spec(model, version))
        return messages.read_model(await self._calls.unary(self._stub.GetModel, request, deadline))

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline.after(self._seconds(timeout))

    def _scoring(self, *options: Any) -> Rpc[Scores]:
        """Return the call for fields of `ScoreOptions`; to check them anew takes a tenth of a joined call."""
        try:
            return self._known_scoring(*options)
        except TypeError:  # what can't be hashed is no option, and is told which
            return self._new_scoring(*options)

    def _new_scoring(self, *fields: Any) -> Rpc[Scores]:
        options = ScoreOptions(*fields)
        request = partial(messages.score_request, options=options)
        stub = self._stub
        return Rpc(options, stub.Score, request, messages.read_scores, streamed=stub.ScoreStream, options=options)
