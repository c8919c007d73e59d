"""`vaeserve.v1.ModelAdmin`: what is served, at an operator's call."""

from vaeserve.errors import InvalidInputError
from vaeserve.v1 import vae_pb2 as pb
from vaeserve_service.call import Call, Method
from vaeserve_service.repository import Repository
from vaeserve_service.servicers import version_state
from vaeserve_service.watcher import Watcher

SERVICE = "vaeserve.v1.ModelAdmin"


class ModelAdmin:
    """`vaeserve.v1.ModelAdmin` over a repository and what watches it."""

    def __init__(self, repository: Repository, watcher: Watcher) -> None:
        self._repository = repository
        self._watcher = watcher

    async def load(self, request: pb.LoadRequest, call: Call) -> pb.LoadResponse:
        """Load a version, and answer once it serves."""
        model = await self._watcher.load(_name(request.model), request.model.version)
        call.model, call.version = model.name, model.version
        return pb.LoadResponse(model=pb.ModelSpec(name=model.name, version=model.version), state=pb.READY)

    async def unload(self, request: pb.UnloadRequest, call: Call) -> pb.UnloadResponse:
        """Unload a version, or a model."""
        del call
        name = _name(request.model)
        await self._watcher.unload(name, request.model.version)
        return pb.UnloadResponse(model=request.model, versions=map(version_state, self._repository.states_of(name)))


def _name(spec: pb.ModelSpec) -> str:
    if not spec.name:
        raise InvalidInputError("model.name: empty; expected a model of the repository")
    return spec.name


def methods(service: ModelAdmin) -> dict[str, Method]:
    """Return the RPCs by their names on the wire."""
    return {"Load": Method(pb.LoadRequest, service.load), "Unload": Method(pb.UnloadRequest, service.unload)}
