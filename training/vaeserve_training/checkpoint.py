"""Where a training stands, in a file that is whole or not there, so that a killed one can go on."""

import hashlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from vaeserve.atomic import new_file
from vaeserve.errors import RunError, first_line

_FILE = "checkpoint.pt"


@dataclass(frozen=True)
class Checkpoint:
    """All that the steps to come depend on, beside the data and the settings.

    weights, optimizer: the states of the stacked members and of Adam. evaluations: what was measured until then.
    best: the `index` of the best of them, the `member` that was best there, and its `weights`.
    """

    step: int
    weights: dict[str, Any]
    optimizer: dict[str, Any]
    evaluations: list[dict[str, Any]]
    best: dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """The folder beside a run that holds its checkpoint until the run is written.

    identity: what must be the same to go on: data, settings, seed.
    """

    folder: Path
    identity: dict[str, Any]

    @classmethod
    def beside(cls, run: Path, identity: dict[str, Any]) -> Self:
        """Return the place for the checkpoints of `run`."""
        return cls(run.with_name(f"{run.name}.training"), identity)

    @classmethod
    def refuse(cls, run: Path, *, resume: bool) -> None:
        """Raise RunError if there are checkpoints of `run` and to `resume` wasn't asked for."""
        here = cls.beside(run, {})
        try:
            unfinished = here.path.exists()
        except OSError as error:
            raise RunError(f"{here.folder}: {error.strerror}; choose another --out") from None
        if unfinished and not resume:
            raise RunError(f"{here.folder}: holds an unfinished training; expected --resume to go on, or its removal")

    @property
    def path(self) -> Path:
        """The newest checkpoint's file."""
        return self.folder / _FILE

    def load(self) -> Checkpoint | None:
        """Return the checkpoint to go on from, or None.

        Raises RunError if it can't be read or is of another training.
        """
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            identity, checkpoint = state["identity"], Checkpoint(**state["checkpoint"])
        except Exception as error:  # of what bytes may hold, torch.load promises no one kind
            raise RunError(f"{self.path}: not a checkpoint: {first_line(error)}; remove it to start anew") from None
        for name, value in self.identity.items():
            if identity.get(name) != _plain(value):
                raise RunError(
                    f"{self.path}: of another training: the {name} changed since; expected the same, or its removal"
                )
        return checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        """Write `checkpoint` in the place of the last one; raises RunError if it can't be written."""
        buffer = io.BytesIO()
        identity = {name: _plain(value) for name, value in self.identity.items()}
        torch.save({"identity": identity, "checkpoint": vars(checkpoint)}, buffer)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with new_file(self.path) as partial:
                partial.write_bytes(buffer.getbuffer())
        except OSError as error:
            raise RunError(
                f"{self.path}: {error.strerror}; the last checkpoint is kept: make room, then --resume"
            ) from None

    def remove(self) -> None:
        """Remove the folder: the run is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _plain(value: Any) -> str:
    """Return a value's fingerprint, the same for equal settings whatever their types' order."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
