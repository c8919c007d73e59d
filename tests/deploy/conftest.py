"""Compositions of deploy/, rendered once a session."""

from collections.abc import Callable

import pytest

from tests.deploy.rendering import COMPOSITIONS, Manifest, render, write_overlay


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Manifest]]:
    """The manifests of a composition: `rendered("cpu")`."""
    made: dict[str, list[Manifest]] = {}

    def of(name: str) -> list[Manifest]:
        if name not in made:
            base, components = COMPOSITIONS[name]
            made[name] = render(write_overlay(tmp_path_factory.mktemp("overlay") / name, base, components))
        return made[name]

    return of
