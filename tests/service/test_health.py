"""The states that the health service tells."""

from vaeserve_service.health import LIVENESS, NOT_SERVING, SERVING, Health


async def test_a_watch_hears_the_end_even_as_it_is_told_the_beginning() -> None:
    """A service that stops while a state is on its way to the caller still says that it doesn't serve."""
    health = Health()
    health.set("", serving=True)
    watched = health.states("")
    states = [(await anext(watched)).status]
    health.close()
    states += [response.status async for response in watched]
    assert states == [SERVING, NOT_SERVING]


async def test_nothing_serves_again_once_it_is_closed() -> None:
    """A model that is loaded while the service drains changes no state; liveness stays as it was."""
    health = Health()
    health.close()
    health.set("fraud", serving=True)
    health.set("", serving=True)
    assert not health.ready
    for name, expected in (("", NOT_SERVING), (LIVENESS, SERVING)):
        assert [response.status async for response in health.states(name)] == [expected]
