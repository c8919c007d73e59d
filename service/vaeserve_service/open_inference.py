"""The Open Inference Protocol's RPCs, and those of Triton's that its clients call, over the same models."""

from collections.abc import AsyncIterator, Generator, Sequence
from functools import partial
from typing import Any

from vaeserve import __version__
from vaeserve.errors import InternalError, InvalidInputError, NotFoundError, OverloadedError, VaeserveError
from vaeserve.status import code_of
from vaeserve_service.call import Call, Method
from vaeserve_service.config import ServiceConfig
from vaeserve_service.contents import add_output, read_inputs
from vaeserve_service.description import model_config, model_metadata, model_statistics
from vaeserve_service.endpoints import SUFFIXES, Endpoint, find
from vaeserve_service.health import LIVENESS, Health
from vaeserve_service.metrics import Metrics
from vaeserve_service.oip import grpc_service_pb2 as pb
from vaeserve_service.parameters import Parameters, read_parameters, refuse_parameters
from vaeserve_service.pipeline import in_order
from vaeserve_service.record import Tally
from vaeserve_service.repository import Repository, State
from vaeserve_service.requests import Request
from vaeserve_service.transport import clipped
from vaeserve_service.watcher import Watcher

SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = ("model_configuration", "model_repository", "parameters", "schedule_policy", "statistics")

_STATES = {State.LOADING: "LOADING", State.READY: "READY", State.FAILED: "UNAVAILABLE"}


class OpenInference:
    """`inference.GRPCInferenceService` over a repository; each operation of a model is a model to it."""

    def __init__(
        self, repository: Repository, config: ServiceConfig, *, metrics: Metrics, health: Health, watcher: Watcher
    ) -> None:
        self._repository = repository
        self._config = config
        self._metrics = metrics
        self._health = health
        self._watcher = watcher

    async def server_live(self, request: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:
        """Tell that the service answers."""
        del request, call
        return pb.ServerLiveResponse(live=self._health.serves(LIVENESS))

    async def server_ready(self, request: pb.ServerReadyRequest, call: Call) -> pb.ServerReadyResponse:
        """Tell whether the service is ready, as health does."""
        del request, call
        return pb.ServerReadyResponse(ready=self._health.ready)

    async def model_ready(self, request: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:
        """Tell whether an endpoint serves; one that isn't there doesn't."""
        try:
            endpoint = self._endpoint(request.name, request.version, call)
        except NotFoundError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._health.serves(endpoint.model.name))

    async def server_metadata(self, request: pb.ServerMetadataRequest, call: Call) -> pb.ServerMetadataResponse:
        """Return the service's name, its version, and which of Triton's extensions it has."""
        del request, call
        return pb.ServerMetadataResponse(name="vaeserve", version=__version__, extensions=EXTENSIONS)

    async def model_metadata(self, request: pb.ModelMetadataRequest, call: Call) -> pb.ModelMetadataResponse:
        """Return an endpoint's signature and properties."""
        endpoint = self._endpoint(request.name, request.version, call)
        states = self._repository.states_of(endpoint.model.name)
        return model_metadata(endpoint, [state.version for state in states if state.state is State.READY])

    async def model_config(self, request: pb.ModelConfigRequest, call: Call) -> pb.ModelConfigResponse:
        """Return how an endpoint is served."""
        endpoint = self._endpoint(request.name, request.version, call)
        return pb.ModelConfigResponse(config=model_config(endpoint, self._config))

    async def model_statistics(self, request: pb.ModelStatisticsRequest, call: Call) -> pb.ModelStatisticsResponse:
        """Return what became of an endpoint's requests, or of all endpoints'."""
        if request.name:
            endpoints = [self._endpoint(request.name, request.version, call)]
        else:
            endpoints = [Endpoint(model, suffix) for model in self._repository for suffix in SUFFIXES]
        return pb.ModelStatisticsResponse(model_stats=map(self._statistics, endpoints))

    def _statistics(self, endpoint: Endpoint) -> pb.ModelStatistics:
        tallies = self._metrics.tallies(endpoint.model.name, endpoint.model.version)
        return model_statistics(endpoint, tallies.get(endpoint.operation, Tally()))

    async def model_infer(self, request: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        """Return the outputs of an endpoint for a request's inputs."""
        return await self._inference(request, call)

    def model_stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], call: Call
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Yield the answer to each request, in order; what is wrong with one is said in its own."""
        begin = partial(self._infer_next, call=call)
        most = self._config.limits.stream_requests
        return in_order(requests, begin, most=most, refuse=lambda request, error: _Answer(request, call.part(), error))

    def _infer_next(self, request: pb.ModelInferRequest, *, call: Call) -> "_Answer":
        part = call.part()
        try:
            return _Answer(request, part, self._inference(request, part))
        except (OverloadedError, InternalError):
            raise
        except VaeserveError as error:
            return _Answer(request, part, error)
        finally:
            call.model, call.version = part.model, part.version

    def _inference(self, request: pb.ModelInferRequest, call: Call) -> "_Inference":
        endpoint = self._endpoint(request.model_name, request.model_version, call)
        parameters = read_parameters(request.parameters, scores=endpoint.operation == "score")
        for position, tensor in enumerate(request.inputs):
            refuse_parameters(tensor.parameters, f"inputs[{position}]", without_effect="binary_data_size")
        for position, output in enumerate(request.outputs):
            refuse_parameters(output.parameters, f"outputs[{position}]", without_effect="binary_data")
        outputs = endpoint.asked([output.name for output in request.outputs], parameters.options)
        inputs = read_inputs(request, most_elements=self._config.limits.tensor_elements)
        computed = endpoint.submit(inputs, parameters.options)
        if parameters.timeout_s:
            computed.expire_after(parameters.timeout_s)
        return _Inference(computed, endpoint, parameters, outputs, call, request.id)

    async def repository_index(self, request: pb.RepositoryIndexRequest, call: Call) -> pb.RepositoryIndexResponse:
        """Return every endpoint and how it fares."""
        del call
        _refuse_repository(request.repository_name)
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=name + suffix, version=state.version, state=_STATES[state.state], reason=state.reason
                )
                for name, states in self._repository.states().items()
                for state in states
                if state.state is State.READY or not request.ready
                for suffix in SUFFIXES
            ]
        )

    async def load(self, request: pb.RepositoryModelLoadRequest, call: Call) -> pb.RepositoryModelLoadResponse:
        """Load a model's newest version, and answer once it serves."""
        name = _operated(request, ignored=())
        model = await self._watcher.load(name, "")
        call.model, call.version = model.name, model.version
        return pb.RepositoryModelLoadResponse()

    async def unload(self, request: pb.RepositoryModelUnloadRequest, call: Call) -> pb.RepositoryModelUnloadResponse:
        """Unload a model, all versions of it."""
        del call
        # No model depends on another here.
        await self._watcher.unload(_operated(request, ignored=("unload_dependents",)), "")
        return pb.RepositoryModelUnloadResponse()

    def _endpoint(self, name: str, version: str, call: Call) -> Endpoint:
        endpoint = find(self._repository, name, version)
        call.model, call.version = endpoint.model.name, endpoint.model.version
        return endpoint


class _Inference:
    """Rows that are being computed: awaited, a ModelInferResponse."""

    def __init__(
        self,
        computed: Request,
        endpoint: Endpoint,
        parameters: Parameters,
        outputs: Sequence[str],
        call: Call,
        request_id: str,
    ) -> None:
        self._computed = computed
        self._endpoint = endpoint  # whose model is in use until then
        self._parameters = parameters
        self._outputs = outputs
        self._call = call
        self._request_id = request_id

    def __await__(self) -> Generator[Any, Any, pb.ModelInferResponse]:
        response = pb.ModelInferResponse()
        yield from self.fill(response)
        return response

    def fill(self, response: pb.ModelInferResponse) -> Generator[Any, Any, None]:
        """Put the answer into a response, once it is there."""
        computed = yield from self._computed
        arrays = self._endpoint.answer(computed, self._outputs, self._parameters.options)
        response.model_name, response.model_version = self._endpoint.name, self._endpoint.model.version
        response.id = self._request_id
        for name, array in arrays.items():
            add_output(response, name, array)
        self._call.answer(self._computed.rows)

    @property
    def marks_final(self) -> bool:
        """Whether its caller wants to be told that there is one answer."""
        return self._parameters.marks_final

    def cancel(self) -> None:
        """Compute no more of them."""
        self._computed.cancel()


class _Answer:
    """The answer to a request of a stream: awaited, what came of it, or what is wrong with it."""

    def __init__(self, request: pb.ModelInferRequest, part: Call, inference: _Inference | VaeserveError) -> None:
        self._request_id = request.id
        self._part = part
        self._inference = inference

    def __await__(self) -> Generator[Any, Any, pb.ModelStreamInferResponse]:
        response = pb.ModelStreamInferResponse()
        try:
            if isinstance(self._inference, VaeserveError):
                raise self._inference
            yield from self._inference.fill(response.infer_response)
            if self._inference.marks_final:
                response.infer_response.parameters["triton_final_response"].bool_param = True
        except InternalError:  # a defect of ours, which is logged where the stream ends
            raise
        except VaeserveError as error:
            self._part.refuse(code_of(error))
            response.error_message = clipped(str(error))
            response.infer_response.id = self._request_id
        return response

    def cancel(self) -> None:
        """Compute no more of it."""
        if isinstance(self._inference, _Inference):
            self._inference.cancel()


def _refuse_repository(name: str) -> None:
    if name:
        raise InvalidInputError(f"repository_name: {name[:80]!r}; the service has one, expected none named")


def _operated(
    request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest, *, ignored: Sequence[str]
) -> str:
    """Return which model an operator means."""
    _refuse_repository(request.repository_name)
    for name in request.parameters:
        if name not in ignored:
            raise InvalidInputError(
                f"parameters: {name[:80]!r}; expected none: a model is what its bundle in the repository says"
            )
    model, dot, _ = request.model_name.partition(".")
    if not model or dot:
        raise InvalidInputError(
            f"model_name: {request.model_name[:80]!r}; expected a model, whose operations go with it"
        )
    return model


def methods(service: OpenInference, *, admin: bool) -> dict[str, Method]:
    """Return the RPCs by their names on the wire; an operator's too, if they are enabled."""
    rpcs = {
        "ServerLive": Method(pb.ServerLiveRequest, service.server_live),
        "ServerReady": Method(pb.ServerReadyRequest, service.server_ready),
        "ModelReady": Method(pb.ModelReadyRequest, service.model_ready),
        "ServerMetadata": Method(pb.ServerMetadataRequest, service.server_metadata),
        "ModelMetadata": Method(pb.ModelMetadataRequest, service.model_metadata),
        "ModelInfer": Method(pb.ModelInferRequest, service.model_infer),
        "ModelStreamInfer": Method(pb.ModelInferRequest, service.model_stream_infer, streaming=True),
        "ModelConfig": Method(pb.ModelConfigRequest, service.model_config),
        "ModelStatistics": Method(pb.ModelStatisticsRequest, service.model_statistics),
        "RepositoryIndex": Method(pb.RepositoryIndexRequest, service.repository_index),
    }
    operators = {
        "RepositoryModelLoad": Method(pb.RepositoryModelLoadRequest, service.load),
        "RepositoryModelUnload": Method(pb.RepositoryModelUnloadRequest, service.unload),
    }
    return rpcs | operators if admin else rpcs
