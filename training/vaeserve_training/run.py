"""The run: what training leaves behind, a folder.

config.toml            the settings, to train with again: --config RUN/config.toml
run.json               what was trained on, how well it went, and with which versions
weights.safetensors    the model's parameters and buffers
metrics.jsonl          one line an evaluation
calibration.npz        held-out normal rows, raw, for the export's calibration
test.npz               held-out rows with their labels, raw, for parity and evaluation
"""

import io
import json
import os
import platform
import zipfile
import zlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import safetensors
import safetensors.torch
import tomli_w
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from vaeserve.atomic import write_folder
from vaeserve.errors import RunError, first_line
from vaeserve.signature import Signature
from vaeserve_training.config import EnsembleConfig, ModelConfig
from vaeserve_training.data import Dataset, Split
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.evaluate import evaluate_rows
from vaeserve_training.train import Evaluation, Trained

LABEL = "anomalous"


class Record(BaseModel):
    """What `run.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    created: datetime
    data: str
    data_sha256: str
    rows: dict[str, int]
    signature: Signature
    config: dict[str, dict[str, Any]]
    seed: int
    best: dict[str, Any]
    best_member: int
    test: dict[str, float]
    versions: dict[str, str]


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    path: Path
    record: Record

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the run at `path`; raises RunError if there is none."""
        path = Path(path)
        try:
            record = Record.model_validate_json((path / "run.json").read_bytes())
        except FileNotFoundError:
            raise RunError(f"{path}: not a run: it has no run.json; expected what 'vaeserve train' wrote") from None
        except OSError as error:
            raise RunError(f"{path}: {error.strerror}; expected the folder of a run") from None
        except ValidationError as error:
            first = error.errors()[0]
            raise RunError(f"{path / 'run.json'}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return cls(path, record)

    def ensemble(self) -> Ensemble:
        """Return the trained model; raises RunError if its weights can't be read."""
        weights = self.path / "weights.safetensors"
        try:
            model = ModelConfig.model_validate(self.record.config.get("model"))
            size = EnsembleConfig.model_validate(self.record.config.get("ensemble")).size or 1
            ensemble = Ensemble.build(self.record.signature, model, size=size, best=self.record.best_member)
            ensemble.reserve_prior(model)
            ensemble.load_state_dict(safetensors.torch.load_file(weights))
        except (OSError, RuntimeError, ValidationError, safetensors.SafetensorError) as error:
            raise RunError(f"{weights}: not this run's weights: {first_line(error)}") from None
        return ensemble.eval()

    def calibration(self) -> Dataset:
        """Return the normal rows held out for calibration."""
        return self._rows("calibration.npz")

    def test(self) -> Dataset:
        """Return the rows held out for the test, with their labels where there are any."""
        return self._rows("test.npz")

    def evaluations(self) -> list[dict[str, Any]]:
        """Return the metrics, one entry an evaluation."""
        lines = (self.path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def _rows(self, name: str) -> Dataset:
        try:
            with (self.path / name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                inputs = dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise RunError(f"{self.path / name}: not this run's held-out rows: {error}") from None
        anomalous = inputs.pop(LABEL, None)
        return Dataset(self.record.data, self.record.signature, inputs, anomalous)


def write_run(path: Path, trained: Trained, *, dataset: Dataset, split: Split, seed: int) -> Run:
    """Write a run at `path`: beside it, then renamed; all of it or nothing.

    Raises RunError if `path` exists or can't be written.
    """
    refuse_target(path)
    # What was chosen is said, so that the weights fit however the defaults may change.
    settings = trained.config.model_dump(mode="json")
    record = Record(
        created=datetime.now(UTC),
        data=dataset.name,
        data_sha256=dataset.sha256(),
        rows={part: len(getattr(split, part)) for part in ("train", "validation", "calibration", "test")},
        signature=dataset.signature,
        config=settings,
        seed=seed,
        best=asdict(trained.best),
        best_member=trained.ensemble.best,
        test=evaluate_rows(trained.ensemble, split.test, seed=seed),
        versions=library_versions(),
    )
    files = {
        "config.toml": tomli_w.dumps(settings).encode(),
        "run.json": record.model_dump_json(indent=2).encode(),
        "weights.safetensors": safetensors.torch.save(trained.ensemble.state_dict()),
        "metrics.jsonl": _json_lines(trained.evaluations).encode(),
        "calibration.npz": _npz(split.calibration),
        "test.npz": _npz(split.test),
    }
    try:
        write_folder(path, files)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; nothing was written") from None
    return Run(path, record)


def refuse_target(path: Path) -> None:
    """Raise RunError if a run can't be written at `path`; before the training is better than after it."""
    try:
        if path.exists():
            raise RunError(f"{path}: exists already; choose another --out, or remove it")
        above = next(parent for parent in path.absolute().parents if parent.exists())
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; choose another --out") from None
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise RunError(f"{path}: {above} can't be written in; choose another --out")


def library_versions() -> dict[str, str]:
    """Return the versions of what a run's numbers depend on."""
    return {
        "python": platform.python_version(),
        "vaeserve": version("vaeserve"),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _npz(dataset: Dataset) -> bytes:
    arrays = dict(dataset.inputs)
    if dataset.anomalous is not None:
        arrays[LABEL] = dataset.anomalous
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _json_lines(evaluations: list[Evaluation]) -> str:
    return "".join(json.dumps(asdict(evaluation)) + "\n" for evaluation in evaluations)
