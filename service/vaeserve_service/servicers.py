"""The RPCs: message in, message or our error out. What carries them is `transport`'s business."""

from collections.abc import AsyncIterator, Generator, Sequence
from functools import lru_cache, partial
from typing import Any

from numpy.typing import NDArray

from vaeserve.errors import InvalidInputError, VaeserveError
from vaeserve.messages import BOUNDS, INPUT_DTYPES, METHODS
from vaeserve.scores import Bound, ScoreOptions
from vaeserve.tensors import from_tensor, to_tensor, to_tensors
from vaeserve.v1 import vae_pb2 as pb
from vaeserve_service.call import Call, Method
from vaeserve_service.model import Model
from vaeserve_service.packed import score_response
from vaeserve_service.pipeline import in_order
from vaeserve_service.repository import Repository, State, VersionState
from vaeserve_service.requests import Arrays, Request

SERVICE = "vaeserve.v1.VaeService"

_BOUNDS = {enum: bound for bound, enum in BOUNDS.items()}
_STATES = {State.LOADING: pb.LOADING, State.READY: pb.READY, State.FAILED: pb.FAILED}
_METHODS = {enum: method for method, enum in METHODS.items()}


class VaeService:
    """`vaeserve.v1.VaeService` over a repository."""

    def __init__(self, repository: Repository, *, most_elements: int, stream_requests: int) -> None:
        self._repository = repository
        self._most_elements = most_elements
        self._stream_requests = stream_requests

    async def encode(self, request: pb.EncodeRequest, call: Call) -> pb.EncodeResponse:
        """Return the rows' posteriors."""
        model = self._model(request.model, call)
        outputs = await model.encode(self._inputs(request.inputs))
        call.answer(len(outputs["status"]))
        return pb.EncodeResponse(
            model=_spec(model),
            mean=to_tensor(outputs["mean"], "mean"),
            log_variance=to_tensor(outputs["log_variance"], "log_variance"),
            status=outputs["status"].tolist(),
        )

    async def decode(self, request: pb.DecodeRequest, call: Call) -> pb.DecodeResponse:
        """Return the latents' reconstructions."""
        model = self._model(request.model, call)
        latents = self._array(request.latents, "latents")
        outputs = await model.decode(latents)
        call.answer(len(latents))
        return pb.DecodeResponse(model=_spec(model), outputs=to_tensors(outputs))

    async def reconstruct(self, request: pb.ReconstructRequest, call: Call) -> pb.ReconstructResponse:
        """Return the rows' reconstructions."""
        model = self._model(request.model, call)
        outputs = await model.reconstruct(self._inputs(request.inputs))
        status = outputs.pop("status").tolist()
        call.answer(len(status))
        return pb.ReconstructResponse(model=_spec(model), outputs=to_tensors(outputs), status=status)

    async def score(self, request: pb.ScoreRequest, call: Call) -> bytes:
        """Return the rows' scores, a ScoreResponse."""
        return await self._scoring(request, call)

    def score_stream(self, requests: AsyncIterator[pb.ScoreRequest], call: Call) -> AsyncIterator[bytes]:
        """Yield a ScoreResponse for each request, in order."""
        return in_order(requests, partial(self._score_next, call=call), most=self._stream_requests)

    def _score_next(self, request: pb.ScoreRequest, *, call: Call) -> "_Scoring":
        """Have a streamed request's rows scored; what is wrong with the request names it."""
        part = call.part()
        try:
            return self._scoring(request, part)
        except VaeserveError as error:
            if request.request_id:
                raise type(error)(f"request_id {request.request_id!r}: {error}") from error
            raise
        finally:
            call.model, call.version = part.model, part.version

    def _scoring(self, request: pb.ScoreRequest, call: Call) -> "_Scoring":
        model = self._model(request.model, call)
        scores = model.score(self._inputs(request.inputs), _options(request))
        return _Scoring(scores, model, call, request.request_id)

    async def generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        """Return the reconstructions of draws from the prior."""
        model = self._model(request.model, call)
        temperature = request.temperature if request.HasField("temperature") else 1.0
        outputs = await model.generate(request.count, seed=request.seed, temperature=temperature)
        call.answer(request.count)
        return pb.GenerateResponse(model=_spec(model), outputs=to_tensors(outputs))

    async def interpolate(self, request: pb.InterpolateRequest, call: Call) -> pb.InterpolateResponse:
        """Return the reconstructions along the path between two latents."""
        model = self._model(request.model, call)
        if request.method not in _METHODS:
            raise InvalidInputError(f"method: {request.method}; expected LINEAR or SPHERICAL")
        start, end = self._array(request.start, "start"), self._array(request.end, "end")
        outputs, latents = await model.interpolate(start, end, steps=request.steps, method=_METHODS[request.method])
        call.answer(len(latents))
        return pb.InterpolateResponse(
            model=_spec(model), outputs=to_tensors(outputs), latents=to_tensor(latents, "latents")
        )

    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        """Return every model's versions."""
        del request, call
        return pb.ListModelsResponse(
            models=[
                pb.Model(name=name, versions=map(version_state, versions))
                for name, versions in self._repository.states().items()
            ]
        )

    async def get_model(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        """Return a model's signature and manifest."""
        model = self._model(request.model, call)
        signature = model.manifest.signature
        return pb.GetModelResponse(
            model=_spec(model),
            state=pb.READY,
            inputs=[
                pb.TensorSpec(name=spec.name, dtype=INPUT_DTYPES[spec.dtype], shape=spec.shape)
                for spec in signature.inputs
            ],
            columns=[
                pb.Column(name=column.name, kind=column.kind, categories=column.categories, nullable=column.nullable)
                for column in signature.columns
            ],
            manifest=model.manifest_json,
            versions=map(version_state, self._repository.states_of(model.name)),
        )

    def _model(self, spec: pb.ModelSpec, call: Call) -> Model:
        if not spec.name:
            raise InvalidInputError(f"model.name: empty; expected one of {', '.join(self._repository.names())}")
        model = self._repository.get(spec.name, spec.version)
        call.model, call.version = model.name, model.version
        return model

    def _inputs(self, tensors: Sequence[pb.Tensor]) -> Arrays:
        inputs: dict[str, NDArray[Any]] = {}
        for position, tensor in enumerate(tensors):
            if tensor.name in inputs:
                raise InvalidInputError(f"inputs[{position}]: {tensor.name!r} is there twice; expected each once")
            inputs[tensor.name] = self._array(tensor, f"inputs[{position}]")
        return inputs

    def _array(self, tensor: pb.Tensor, where: str) -> NDArray[Any]:
        return from_tensor(tensor, where, most_elements=self._most_elements)


class _Scoring:
    """Rows that are being scored: awaited, a ScoreResponse. No task of its own, for a streamed request has none."""

    def __init__(self, scores: Request, model: Model, call: Call, request_id: str) -> None:
        self._scores = scores
        self._call = call
        self._model = model  # which is in use until then
        self._request_id = request_id

    def __await__(self) -> Generator[Any, Any, bytes]:
        outputs = yield from self._scores
        self._call.answer(self._scores.rows)
        return score_response(outputs, model=self._model.name, version=self._model.version, request_id=self._request_id)

    def cancel(self) -> None:
        """Score no more of them."""
        self._scores.cancel()


def version_state(version: VersionState) -> pb.ModelVersion:
    """Return how a version fares, as it is said on the wire."""
    return pb.ModelVersion(version=version.version, state=_STATES[version.state], reason=version.reason)


def _options(request: pb.ScoreRequest) -> ScoreOptions:
    if request.bound not in _BOUNDS:
        raise InvalidInputError(f"bound: {request.bound}; expected ELBO or IWAE")
    return checked_options(
        request.num_samples if request.HasField("num_samples") else None,
        _BOUNDS[request.bound],
        request.seed if request.HasField("seed") else None,
        request.false_positive_rate if request.HasField("false_positive_rate") else None,
        request.top_features,
    )


@lru_cache(typed=True)
def checked_options(
    num_samples: int | None, bound: Bound, seed: int | None, false_positive_rate: float | None, top_features: int
) -> ScoreOptions:
    """Return options; callers send the same ones again and again, and checking them costs more than that."""
    return ScoreOptions(num_samples, bound, seed, false_positive_rate, top_features)


def _spec(model: Model) -> pb.ModelSpec:
    return pb.ModelSpec(name=model.name, version=model.version)


def methods(service: VaeService) -> dict[str, Method]:
    """Return the RPCs by their names on the wire."""
    return {
        "Encode": Method(pb.EncodeRequest, service.encode),
        "Decode": Method(pb.DecodeRequest, service.decode),
        "Reconstruct": Method(pb.ReconstructRequest, service.reconstruct),
        "Score": Method(pb.ScoreRequest, service.score),
        "ScoreStream": Method(pb.ScoreRequest, service.score_stream, streaming=True),
        "Generate": Method(pb.GenerateRequest, service.generate),
        "Interpolate": Method(pb.InterpolateRequest, service.interpolate),
        "ListModels": Method(pb.ListModelsRequest, service.list_models),
        "GetModel": Method(pb.GetModelRequest, service.get_model),
    }
