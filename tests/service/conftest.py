"""Two small bundles, and a repository in which versions of them come, change and go."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import train_kind
from vaeserve.bundle import Bundle
from vaeserve_export.export import export

NAME = "table3"


@dataclass(frozen=True)
class Shelf:
    """A repository whose versions appear whole, as an export's do."""

    path: Path
    bundles: tuple[Bundle, Bundle]

    def add(self, version: int, *, bundle: int = 0, name: str = NAME) -> Path:
        """Let a version appear, of one of the bundles, and return its folder."""
        folder = self.path / name / str(version)
        aside = folder.with_name(f".{version}.partial")
        shutil.copytree(self.bundles[bundle].path, aside)
        aside.rename(folder)
        return folder


@pytest.fixture(scope="session")
def two_bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """Two models that take the same rows and score them otherwise."""
    folder = tmp_path_factory.mktemp("two")
    first, second = (
        export(train_kind(NAME, folder / "runs" / str(seed), steps=20, seed=seed), folder / "repository", name=NAME)
        for seed in (0, 1)
    )
    return first, second


@pytest.fixture
def shelf(two_bundles: tuple[Bundle, Bundle], tmp_path: Path) -> Shelf:
    """An empty repository."""
    (tmp_path / "shelf").mkdir()
    return Shelf(tmp_path / "shelf", two_bundles)
