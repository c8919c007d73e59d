"""`vaeserve.v1.ModelAdmin`: what is served, at an operator's call."""

from collections.abc import Mapping
from typing import Any

from vaeserve.errors import InvalidInputError
from vaeserve.v1 import vae_pb2 as pb
from vaeserve_service.repository import Repository
from vaeserve_service.servicers import version_state
from vaeserve_service.watcher import Watcher

SERVICE = "vaeserve.v1.ModelAdmin"


class ModelAdmin:
    """`vaeserve.v1.ModelAdmin` over a repository and what watches it."""

    def __init__(self, repository: Repository, watcher: Watcher) -> None:
        self._repository = repository
        self._watcher = watcher

    async def load(self, request: pb.LoadRequest) -> pb.LoadResponse:
        """Load a version, and answer once it serves."""
        model = await self._watcher.load(_name(request.model), request.model.version)
        return pb.LoadResponse(model=pb.ModelSpec(name=model.name, version=model.version), state=pb.READY)

    async def unload(self, request: pb.UnloadRequest) -> pb.UnloadResponse:
        """Unload a version, or a model."""
        name = _name(request.model)
        await self._watcher.unload(name, request.model.version)
        return pb.UnloadResponse(model=request.model, versions=map(version_state, self._repository.states_of(name)))


def _name(spec: pb.ModelSpec) -> str:
    if not spec.name:
        raise InvalidInputError("model.name: empty; expected a model of the repository")
    return spec.name


def methods(service: ModelAdmin) -> Mapping[str, tuple[Any, Any]]:
    """Return each RPC's request type and handler, by its name on the wire."""
    return {"Load": (pb.LoadRequest, service.load), "Unload": (pb.UnloadRequest, service.unload)}
