"""Small real models, trained and exported once a session, and a real service that serves them."""

import functools
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch.onnx._internal._lazy_import import onnxscript_apis  # type: ignore[attr-defined]

from vaeserve import bundle
from vaeserve.atomic import write_folder
from vaeserve.bundle import Bundle
from vaeserve.client import Client
from vaeserve.config import load
from vaeserve.local import LocalService, serve_locally
from vaeserve.signature import Column, Signature
from vaeserve_export.export import export
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import Dataset, split
from vaeserve_training.run import Run, write_run
from vaeserve_training.train import train

# Widths that are no multiple of a SIMD register, where bits differ first.
KINDS: dict[str, dict[str, Any]] = {
    "table3": {"shape": (3,), "likelihood": "gaussian", "latent_dim": 2, "hidden": (7, 5)},
    "table7": {"shape": (7,), "likelihood": "gaussian", "latent_dim": 3, "hidden": (33, 21)},
    "table33": {"shape": (33,), "likelihood": "student_t", "latent_dim": 5, "hidden": (30, 30), "members": 2},
    "binary21": {"shape": (21,), "likelihood": "bernoulli", "latent_dim": 7, "hidden": (21,)},
    "image": {"shape": (1, 5, 6), "likelihood": "gaussian", "latent_dim": 5, "hidden": (33,)},
    "grey": {"shape": (1, 7, 3), "likelihood": "bernoulli", "latent_dim": 3, "hidden": (30,)},
    "conv": {"shape": (3, 9, 7), "likelihood": "gaussian", "latent_dim": 3, "hidden": (5, 7), "network": "conv"},
    "mixed": {"columns": "nnnbbcccn", "likelihood": "student_t", "latent_dim": 3, "hidden": (21,), "members": 2},
    "codes": {"columns": "ccc", "likelihood": "student_t", "latent_dim": 2, "hidden": (7,)},
}
ROWS = 600

# A shell has what it starts in the background ignore interrupts, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Which of the run's processes this is, `gw0` and so on; empty where there is one alone.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")


@dataclass(frozen=True)
class Models:
    """A repository with a model of each kind, and the runs they come from."""

    repository: Path
    runs: dict[str, Run]
    bundles: dict[str, Bundle]


def normal_rows(shape: tuple[int, ...], likelihood: str, count: int, *, seed: int) -> NDArray[Any]:
    """Return rows that lie near a plane, as numbers, bits or pixels."""
    generator = np.random.default_rng(seed)
    features = int(np.prod(shape))
    plane = np.random.default_rng(features).normal(size=(2, features))
    numbers = generator.normal(size=(count, 2)) @ plane + 0.3 * generator.normal(size=(count, features))
    if len(shape) == 3:
        return np.clip(128 + 40 * numbers, 0, 255).astype(np.uint8).reshape(count, *shape)
    if likelihood == "bernoulli":
        return (numbers > 0).astype(np.float32)
    return (numbers * np.arange(1, features + 1) + 10).astype(np.float32)


def mixed_rows(columns: str, count: int, *, seed: int) -> Dataset:
    """Return rows of numbers (n), bits (b) and categories (c), some missing in every third column."""
    numbers = normal_rows((len(columns),), "gaussian", count, seed=seed) - 10
    missing = np.random.default_rng(seed).random(numbers.shape) < 0.1
    kinds: dict[str, Any] = {"n": "numeric", "b": "binary", "c": "categorical"}
    inputs: dict[str, list[NDArray[Any]]] = {"numeric": [], "categorical": []}
    signature = []
    for index, kind in enumerate(columns):
        values, nullable = numbers[:, index], index % 3 == 2
        gone = missing[:, index] & nullable
        # The commonest lie in the middle; those at the ends are rare, and the last one hardly ever seen.
        names = tuple(f"{chr(97 + code)}{'x' * (code % 3)}" for code in range(2 + index % 4))
        if kind == "c":
            codes = np.clip(values / (index + 1) + len(names) / 2, 0, len(names) - 1).astype(int)
            inputs["categorical"].append(np.where(gone, "", np.array(names)[codes]))
        else:
            inputs["numeric"].append(np.where(gone, np.nan, values > 0 if kind == "b" else values))
        signature.append(Column(f"c{index}", kinds[kind], names if kind == "c" else (), nullable))
    arrays = {name: np.column_stack(columns) for name, columns in inputs.items() if columns}
    if "numeric" in arrays:
        arrays["numeric"] = arrays["numeric"].astype(np.float32)
    return Dataset(columns, Signature.table(signature), arrays)


def dataset_of(kind: str, count: int = ROWS, *, seed: int = 0) -> Dataset:
    """Return a dataset for a kind of model."""
    spec = KINDS[kind]
    if "columns" in spec:
        return mixed_rows(spec["columns"], count, seed=seed)
    rows = normal_rows(spec["shape"], spec["likelihood"], count, seed=seed)
    if rows.ndim == 4:
        return Dataset(kind, Signature.image(rows.shape[1:]), {"image": rows})
    return Dataset(kind, Signature.numbers([f"c{index}" for index in range(rows.shape[1])]), {"numeric": rows})


def train_kind(kind: str, path: Path, *, steps: int = 60, seed: int = 0) -> Run:
    """Train a model of a kind for a moment, and write its run."""
    spec = KINDS[kind]
    model: dict[str, Any] = {
        name: spec[name] for name in ("likelihood", "latent_dim", "hidden", "network") if name in spec
    }
    config = load(TrainConfig, overrides={
        "model": model, "ensemble": {"size": spec.get("members", 1)},
        "optimizer": {"max_steps": steps, "evaluate_every": 20},
    })  # fmt: skip
    dataset = dataset_of(kind)
    parts = split(dataset, config.data, seed=seed)
    return write_run(path, train(parts, config, seed=seed), dataset=dataset, split=parts, seed=seed)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Let every test draw the same numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _parsed_once() -> Iterator[None]:
    """Let the exporter parse the sources of its operators once, which it does for each graph, a third of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxscript_apis, "get_torchlib_ops", functools.cache(onnxscript_apis.get_torchlib_ops))
        yield


@pytest.fixture(scope="session", autouse=True)
def _valid_manifests() -> Iterator[None]:
    """Let every manifest that a test writes in this process be valid by the published schema."""
    schema = json.loads((Path(__file__).parents[1] / "docs" / "manifest.schema.json").read_text())

    def write_valid(target: Path, files: Mapping[str, bytes]) -> None:
        jsonschema.validate(json.loads(files["manifest.json"]), schema)
        write_folder(target, files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "write_folder", write_valid)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of a run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if WORKER else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def models(shared: Path) -> Models:
    """A repository with a trained and exported model of each kind, which the workers of a run make and use together."""
    repository, runs = shared / "repository", shared / "runs"
    # From both ends, so that two workers meet in the middle.
    for kind in list(KINDS)[:: -1 if WORKER == "gw1" else 1]:
        with FileLock(shared / f"{kind}.lock"):
            if not (repository / kind).exists():
                export(train_kind(kind, runs / kind), repository, name=kind)
    return Models(
        repository,
        {kind: Run.open(runs / kind) for kind in KINDS},
        {kind: Bundle.open(repository / kind / "1") for kind in KINDS},
    )


@pytest.fixture(scope="session")
def rows_of() -> Callable[..., NDArray[Any]]:
    """Fresh normal rows for a kind of model: `rows_of(kind, count, seed=...)`."""

    def rows(kind: str, count: int, *, seed: int = 1) -> NDArray[Any]:
        return next(iter(dataset_of(kind, count, seed=seed).inputs.values()))

    return rows


@pytest.fixture(scope="session")
def inputs_of() -> Callable[..., dict[str, NDArray[Any]]]:
    """Fresh normal rows for a kind of model, as its input tensors: `inputs_of(kind, count, seed=...)`."""

    def inputs(kind: str, count: int, *, seed: int = 1) -> dict[str, NDArray[Any]]:
        return dataset_of(kind, count, seed=seed).inputs

    return inputs


@pytest.fixture(scope="session")
def service(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A running service with a model of each kind."""
    with serve_locally(models.repository, log=tmp_path_factory.mktemp("service") / "log") as started:
        yield started


@pytest.fixture(scope="session")
def client(service: LocalService) -> Iterator[Client]:
    """A client of the running service."""
    with Client(service.target) as opened:
        yield opened
