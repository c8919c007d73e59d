"""Training rows by their positions, in memory or gathered as they are asked for."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vaeserve.signature import Column, Signature
from vaeserve_training.config import ModelConfig
from vaeserve_training.data import Dataset
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.features import Rows, tensors_of
from vaeserve_training.feed import Feed

CPU = torch.device("cpu")
MIXED = Signature.table([
    Column("colour", "categorical", ("blue", "red"), nullable=True),
    Column("size", "numeric", nullable=True),
    Column("flag", "binary"),
])  # fmt: skip
ROWS = 500


def mixed(folder: Path | None = None) -> Dataset:
    """Return a mixed table with gaps, on disk where there is a folder."""
    generator = np.random.default_rng(0)
    numeric = np.stack([generator.normal(5, 3, ROWS), generator.integers(0, 2, ROWS)], 1).astype(np.float32)
    numeric[::7, 0] = np.nan
    colour = generator.choice(["blue", "red", ""], (ROWS, 1))
    arrays = {"numeric": numeric, "categorical": colour}
    if folder:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}
    return Dataset("mixed", MIXED, arrays)


def ensemble_for(dataset: Dataset, *scalings: str) -> Ensemble:
    """Return an untrained ensemble with a member of each scaling, fitted."""
    config = ModelConfig.model_validate({"scaling": scalings, "latent_dim": 2, "hidden": (4,)})
    model = config.resolve(dataset.signature, rows=len(dataset))
    ensemble = Ensemble.build(dataset.signature, model, size=len(scalings))
    for vae in ensemble:
        vae.features.fit(tensors_of(dataset.signature, dataset.inputs))
    return ensemble


def feed_of(dataset: Dataset, ensemble: Ensemble, *, memory_bytes: float = math.inf) -> Feed:
    """Return the feed of a dataset on the CPU."""
    return Feed(dataset, ensemble, device=CPU, memory_bytes=memory_bytes)


def same(one: Rows, other: Rows) -> bool:
    """Tell whether rows agree in every bit."""
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    "scalings", [("standard",), ("robust",), ("standard", "robust"), ("standard", "standard", "robust")]
)
def test_rows_from_disk_have_the_bits_of_those_in_memory(tmp_path: Path, scalings: tuple[str, ...]) -> None:
    """What is gathered and scaled with each call, from memory or from a file, is what lies ready."""
    there = mixed()
    ensemble = ensemble_for(there, *scalings)
    positions = torch.randint(ROWS, (len(scalings), 64), generator=torch.Generator().manual_seed(0))
    resident = feed_of(there, ensemble).take(positions)
    assert resident.x.shape == (len(scalings), 64, 3)
    for dataset in (there, mixed(tmp_path)):
        assert same(feed_of(dataset, ensemble, memory_bytes=1).take(positions), resident)
    view = np.arange(ROWS)[::-1].copy()
    backwards = feed_of(mixed(tmp_path)[view], ensemble, memory_bytes=1)
    assert same(backwards.take(ROWS - 1 - positions), resident)


def test_each_member_sees_rows_its_own_way() -> None:
    """A member's rows are what its features make of them, with a log-Jacobian of 0 where another needs one."""
    dataset = mixed()
    ensemble = ensemble_for(dataset, "standard", "robust", "standard")
    positions = torch.tensor([[0, 1, 2], [0, 1, 2], [7, 8, 9]])
    rows = feed_of(dataset, ensemble).take(positions)
    for index, vae in enumerate(ensemble):
        raw = tensors_of(MIXED, dataset.take(positions[index].numpy()))
        expected = vae.features(raw)
        assert torch.equal(rows.pick(index).x, expected.x)
        assert rows.observed is not None
        assert torch.equal(rows.observed[index], expected.observed)
    assert rows.log_jacobian is not None
    assert (rows.log_jacobian[[0, 2]] == 0).all()
    assert (rows.log_jacobian[1, :, 1] != 0).all()
    assert feed_of(dataset, ensemble_for(dataset, "standard")).take(positions[:1]).log_jacobian is None


def test_all_rows_of_a_member_come_in_order() -> None:
    """`all_of` gives every row once, from memory or not."""
    dataset = mixed()
    ensemble = ensemble_for(dataset, "standard", "robust")
    everything = torch.arange(ROWS).expand(2, -1)
    for memory_bytes in (math.inf, 1):
        feed = feed_of(dataset, ensemble, memory_bytes=memory_bytes)
        assert len(feed) == ROWS
        assert torch.equal(feed.all_of(1).x, feed.take(everything).x[1])


def test_images_are_fed_as_intensities() -> None:
    """Pixels come out between 0 and 1, the same from memory and not."""
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 3, 3), np.uint8)
    dataset = Dataset("images", Signature.image((1, 3, 3)), {"image": images})
    ensemble = ensemble_for(dataset, "standard", "standard")
    positions = torch.tensor([[0, 5], [19, 3]])
    rows = feed_of(dataset, ensemble).take(positions)
    expected = torch.from_numpy(images[positions.numpy()].reshape(2, 2, 9)).float() / 255
    assert torch.equal(rows.x, expected)
    assert same(feed_of(dataset, ensemble, memory_bytes=1).take(positions), rows)
