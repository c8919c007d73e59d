"""The client of a vaeserve service, in two forms with one surface: `Client` blocks, `AsyncClient` awaits.

with Client("localhost:8001") as client:
    scores = client.score("fraud", rows)
    rows[scores.anomalous]
"""

import functools
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

import grpc
import grpc.aio
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import ArrayLike, NDArray

from vaeserve import messages
from vaeserve.errors import InvalidInputError, NotFoundError, VaeserveError
from vaeserve.latents import Interpolation
from vaeserve.messages import Decoded, Encoded, Interpolated, ModelInfo, Reconstructed, Served
from vaeserve.scores import Bound, ScoreOptions, Scores
from vaeserve.signature import Rows, array_of
from vaeserve.status import error_of
from vaeserve.tensors import to_tensor, to_tensors
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceStub

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_S = 30.0
# The service has the limits.
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

# Makes a call: a stub's method, its request, and the seconds it may take.
_Invoke = Callable[[Any, Any, float], Awaitable[Any]]
# Makes a request of a model's version and its inputs.
_Request = Callable[[pb.ModelSpec, dict[str, NDArray[Any]]], Any]


class _Surface:
    """What both clients do, written once.

    Every method takes `timeout`, the seconds that each of its calls may take; None is the client's own. It raises
    InvalidInputError, NotFoundError or OutOfRangeError for the caller's faults, and for the service's OverloadedError,
    UnavailableError, DeadlineError or InternalError.
    """

    def __init__(self, channel: Any, invoke: _Invoke, *, target: str, timeout: float) -> None:
        self._stub = VaeServiceStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)
        self._invoke = invoke
        self._target = target
        self._timeout = timeout

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
        options = ScoreOptions(num_samples, bound, seed, false_positive_rate, top_features)
        response = await self._call_with(
            rows,
            self._stub.Score,
            lambda spec, inputs: messages.score_request(spec, inputs, options),
            model=model,
            version=version,
            timeout=timeout,
        )
        return messages.read_scores(response)

    async def encode(self, model: str, rows: Rows, *, version: str = "", timeout: float | None = None) -> Encoded:
        """Return each row's posterior; rows as for `score`."""
        response = await self._call_with(
            rows,
            self._stub.Encode,
            lambda spec, inputs: pb.EncodeRequest(model=spec, inputs=to_tensors(inputs)),
            model=model,
            version=version,
            timeout=timeout,
        )
        return messages.read_encoded(response)

    async def decode(
        self, model: str, latents: ArrayLike, *, version: str = "", timeout: float | None = None
    ) -> Decoded:
        """Return the reconstructions of `latents` [rows, latent]."""
        tensor = to_tensor(array_of(latents), "latents")
        request = pb.DecodeRequest(model=messages.spec(model, version), latents=tensor)
        return messages.read_decoded(await self._call(self._stub.Decode, request, timeout))

    async def reconstruct(
        self, model: str, rows: Rows, *, version: str = "", timeout: float | None = None
    ) -> Reconstructed:
        """Return the reconstruction at each row's posterior mean; rows as for `score`."""
        response = await self._call_with(
            rows,
            self._stub.Reconstruct,
            lambda spec, inputs: pb.ReconstructRequest(model=spec, inputs=to_tensors(inputs)),
            model=model,
            version=version,
            timeout=timeout,
        )
        return messages.read_reconstructed(response)

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
        request = pb.GetModelRequest(model=messages.spec(model, version))
        return messages.read_model(await self._call(self._stub.GetModel, request, timeout))

    async def health(self, name: str = "", *, timeout: float | None = None) -> bool:
        """Tell whether the service as a whole, or the model `name`, serves."""
        request = health_pb2.HealthCheckRequest(service=name)
        response = await self._call(self._health.Check, request, timeout)
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def _call_with(
        self, rows: Rows, method: Any, request: _Request, *, model: str, version: str, timeout: float | None
    ) -> Any:
        """Call a method with rows, and again if the version that they were made for has been replaced meanwhile."""
        spec, inputs = await self._inputs(model, version, rows, timeout)
        try:
            return await self._call(method, request(spec, inputs), timeout)
        except NotFoundError:
            if spec.version == version:
                raise
        return await self._call(method, request(*await self._inputs(model, version, rows, timeout)), timeout)

    async def _inputs(
        self, model: str, version: str, rows: Rows, timeout: float | None
    ) -> tuple[pb.ModelSpec, dict[str, NDArray[Any]]]:
        """Return the rows as tensors, and for which version they are.

        Columns are matched by the names that the version gives them, so the call is pinned to it: another might have
        them in another order. That costs a call to GetModel.
        """
        if isinstance(rows, np.ndarray | list | tuple):
            return messages.spec(model, version), {"": array_of(rows)}
        info = await self.model(model, version=version, timeout=timeout)
        return messages.spec(model, info.version), info.signature.inputs_from(rows)

    async def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        try:
            return await self._invoke(method, request, self._timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise self._error(error) from error
        except (ValueError, grpc.aio.UsageError) as error:  # how gRPC says that its channel is closed
            raise InvalidInputError(f"{self._target}: {error}; expected an open client") from error

    def _error(self, error: Any) -> VaeserveError:
        return error_of(error.code(), f"{self._target}: {error.details()}")


class AsyncClient(_Surface):
    """The client for asyncio; close it, or use it as an async context manager."""

    def __init__(self, target: str, *, timeout: float = TIMEOUT_S) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        super().__init__(self._channel, _awaited, target=target, timeout=timeout)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _awaited(method: Any, request: Any, timeout: float) -> Any:
    return await method(request, timeout=timeout)


async def _blocking(method: Any, request: Any, timeout: float) -> Any:
    return method(request, timeout=timeout)


def _blocks(
    method: Callable[Concatenate[_Surface, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    """Return the blocking form of a method, which awaits nothing where each call blocks."""

    @functools.wraps(method)
    def blocking(self: "Client", *args: P.args, **kwargs: P.kwargs) -> T:
        coroutine = method(self._surface, *args, **kwargs)
        try:
            coroutine.send(None)
        except StopIteration as done:
            result: T = done.value
            return result
        raise AssertionError("a blocking call awaited")

    return cast(Callable[Concatenate["Client", P], T], blocking)


class Client:
    """The client that blocks; close it, or use it as a context manager. Threads may share one."""

    def __init__(self, target: str, *, timeout: float = TIMEOUT_S) -> None:
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._surface = _Surface(self._channel, _blocking, target=target, timeout=timeout)

    score = _blocks(_Surface.score)
    encode = _blocks(_Surface.encode)
    decode = _blocks(_Surface.decode)
    reconstruct = _blocks(_Surface.reconstruct)
    generate = _blocks(_Surface.generate)
    interpolate = _blocks(_Surface.interpolate)
    models = _blocks(_Surface.models)
    model = _blocks(_Surface.model)
    health = _blocks(_Surface.health)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
