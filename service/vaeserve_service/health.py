"""`grpc.health.v1`: overall (""), per model, and a liveness name that loading models never turns off."""

import asyncio
from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2

from vaeserve.errors import NotFoundError
from vaeserve_service.call import Call, Method

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
LIVENESS = "liveness"

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The state of each name. Open watches end when it closes, or they would hold a stopping server."""

    def __init__(self) -> None:
        self._states = {"": NOT_SERVING, LIVENESS: SERVING}
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def ready(self) -> bool:
        """Whether the service as a whole serves."""
        return self._states[""] == SERVING

    def serves(self, name: str) -> bool:
        """Return whether a name serves."""
        return self._states.get(name) == SERVING

    def set(self, name: str, *, serving: bool) -> None:
        """Set the state of a name, unless it is closed."""
        if self._closed:
            return
        self._states[name] = SERVING if serving else NOT_SERVING
        self._wake()

    def close(self) -> None:
        """Say NOT_SERVING for every name but liveness, and end the watches."""
        self._states = dict.fromkeys(self._states, NOT_SERVING) | {LIVENESS: SERVING}
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def state(self, name: str) -> health_pb2.HealthCheckResponse:
        """Return the state of a name; raises NotFoundError for an unknown one."""
        state = self._states.get(name)
        if state is None:
            known = ", ".join(known or '""' for known in self._states)
            raise NotFoundError(f"service: {name!r}; expected one of {known}")
        return health_pb2.HealthCheckResponse(status=state)

    async def states(self, name: str) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yield the state of a name, and each change of it."""
        last = None
        while True:
            # As they were before the state is told: what happens while it is written is for the next turn.
            changed, closed = self._changed, self._closed
            state = self._states.get(name, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if state != last:
                yield health_pb2.HealthCheckResponse(status=state)
                last = state
            if closed:
                return
            await changed.wait()


def methods(health: Health) -> dict[str, Method]:
    """Return the RPCs by their names on the wire."""

    async def check(request: health_pb2.HealthCheckRequest, _: Call) -> health_pb2.HealthCheckResponse:
        return health.state(request.service)

    async def watch(
        requests: AsyncIterator[health_pb2.HealthCheckRequest], _: Call
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        async for request in requests:
            async for state in health.states(request.service):
                yield state
            return

    return {
        "Check": Method(health_pb2.HealthCheckRequest, check),
        "Watch": Method(health_pb2.HealthCheckRequest, watch, streaming=True),
    }
