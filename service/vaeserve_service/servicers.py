"""The RPCs: message in, message or our error out. What carries them is `transport`'s business."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from vaeserve.errors import InvalidInputError
from vaeserve.messages import BOUNDS, INPUT_DTYPES, METHODS
from vaeserve.scores import ScoreOptions, Scores
from vaeserve.tensors import from_tensor, to_tensor, to_tensors
from vaeserve.v1 import vae_pb2 as pb
from vaeserve_service.model import Model
from vaeserve_service.repository import Repository, State, VersionState
from vaeserve_service.runtime import Arrays

SERVICE = "vaeserve.v1.VaeService"

_BOUNDS = {enum: bound for bound, enum in BOUNDS.items()}
_STATES = {State.LOADING: pb.LOADING, State.READY: pb.READY, State.FAILED: pb.FAILED}
_METHODS = {enum: method for method, enum in METHODS.items()}


class VaeService:
    """`vaeserve.v1.VaeService` over a repository."""

    def __init__(self, repository: Repository, *, most_elements: int) -> None:
        self._repository = repository
        self._most_elements = most_elements

    async def encode(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        """Return the rows' posteriors."""
        model = self._model(request.model)
        outputs = await model.encode(self._inputs(request.inputs))
        return pb.EncodeResponse(
            model=_spec(model),
            mean=to_tensor(outputs["mean"], "mean"),
            log_variance=to_tensor(outputs["log_variance"], "log_variance"),
            status=outputs["status"].tolist(),
        )

    async def decode(self, request: pb.DecodeRequest) -> pb.DecodeResponse:
        """Return the latents' reconstructions."""
        model = self._model(request.model)
        outputs = await model.decode(self._array(request.latents, "latents"))
        return pb.DecodeResponse(model=_spec(model), outputs=to_tensors(outputs))

    async def reconstruct(self, request: pb.ReconstructRequest) -> pb.ReconstructResponse:
        """Return the rows' reconstructions."""
        model = self._model(request.model)
        outputs = await model.reconstruct(self._inputs(request.inputs))
        status = outputs.pop("status").tolist()
        return pb.ReconstructResponse(model=_spec(model), outputs=to_tensors(outputs), status=status)

    async def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """Return the rows' scores."""
        model = self._model(request.model)
        scores = await model.score(self._inputs(request.inputs), _options(request))
        return _score_response(model, scores)

    async def generate(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        """Return the reconstructions of draws from the prior."""
        model = self._model(request.model)
        temperature = request.temperature if request.HasField("temperature") else 1.0
        outputs = await model.generate(request.count, seed=request.seed, temperature=temperature)
        return pb.GenerateResponse(model=_spec(model), outputs=to_tensors(outputs))

    async def interpolate(self, request: pb.InterpolateRequest) -> pb.InterpolateResponse:
        """Return the reconstructions along the path between two latents."""
        model = self._model(request.model)
        if request.method not in _METHODS:
            raise InvalidInputError(f"method: {request.method}; expected LINEAR or SPHERICAL")
        start, end = self._array(request.start, "start"), self._array(request.end, "end")
        outputs, latents = await model.interpolate(start, end, steps=request.steps, method=_METHODS[request.method])
        return pb.InterpolateResponse(
            model=_spec(model), outputs=to_tensors(outputs), latents=to_tensor(latents, "latents")
        )

    async def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Return every model's versions."""
        del request
        return pb.ListModelsResponse(
            models=[
                pb.Model(name=name, versions=map(version_state, versions))
                for name, versions in self._repository.states().items()
            ]
        )

    async def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """Return a model's signature and manifest."""
        model = self._model(request.model)
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

    def _model(self, spec: pb.ModelSpec) -> Model:
        if not spec.name:
            raise InvalidInputError(f"model.name: empty; expected one of {', '.join(self._repository.names())}")
        return self._repository.get(spec.name, spec.version)

    def _inputs(self, tensors: Sequence[pb.Tensor]) -> Arrays:
        inputs: dict[str, NDArray[Any]] = {}
        for position, tensor in enumerate(tensors):
            if tensor.name in inputs:
                raise InvalidInputError(f"inputs[{position}]: {tensor.name!r} is there twice; expected each once")
            inputs[tensor.name] = self._array(tensor, f"inputs[{position}]")
        return inputs

    def _array(self, tensor: pb.Tensor, where: str) -> NDArray[Any]:
        return from_tensor(tensor, where, most_elements=self._most_elements)


def version_state(version: VersionState) -> pb.ModelVersion:
    """Return how a version fares, as it is said on the wire."""
    return pb.ModelVersion(version=version.version, state=_STATES[version.state], reason=version.reason)


def _options(request: pb.ScoreRequest) -> ScoreOptions:
    if request.bound not in _BOUNDS:
        raise InvalidInputError(f"bound: {request.bound}; expected ELBO or IWAE")
    return ScoreOptions(
        num_samples=request.num_samples if request.HasField("num_samples") else None,
        bound=_BOUNDS[request.bound],
        seed=request.seed if request.HasField("seed") else None,
        false_positive_rate=(request.false_positive_rate if request.HasField("false_positive_rate") else None),
        top_features=request.top_features,
    )


def _score_response(model: Model, scores: Scores) -> pb.ScoreResponse:
    return pb.ScoreResponse(
        model=_spec(model),
        score=scores.score.tolist(),
        elbo=scores.elbo.tolist(),
        log_likelihood=scores.log_likelihood.tolist(),
        kl=scores.kl.tolist(),
        p_value=scores.p_value.tolist(),
        anomalous=scores.anomalous.tolist(),
        status=scores.status.tolist(),
        attributions=[
            pb.Attributions(
                features=[attribution.feature for attribution in row],
                excess=[attribution.excess for attribution in row],
            )
            for row in scores.attributions
        ],
    )


def _spec(model: Model) -> pb.ModelSpec:
    return pb.ModelSpec(name=model.name, version=model.version)


def methods(service: VaeService) -> Mapping[str, tuple[Any, Any]]:
    """Return each RPC's request type and handler, by its name on the wire."""
    return {
        "Encode": (pb.EncodeRequest, service.encode),
        "Decode": (pb.DecodeRequest, service.decode),
        "Reconstruct": (pb.ReconstructRequest, service.reconstruct),
        "Score": (pb.ScoreRequest, service.score),
        "Generate": (pb.GenerateRequest, service.generate),
        "Interpolate": (pb.InterpolateRequest, service.interpolate),
        "ListModels": (pb.ListModelsRequest, service.list_models),
        "GetModel": (pb.GetModelRequest, service.get_model),
    }
