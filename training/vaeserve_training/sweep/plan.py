"""What a sweep's folder holds the models of: rows, settings and a seed, which are its for good."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaeserve.atomic import new_file
from vaeserve.errors import RunError
from vaeserve_training.config import TrainConfig
from vaeserve_training.run import refuse_target

_FILE = "plan.json"


def take(out: Path, *, data: str, rows_sha256: str, settings: TrainConfig, seed: int, resume: bool) -> None:
    """Make the folder `out` for a sweep, or go on in the one of the same sweep.

    Weightings are no part of what must be the same: those that are there already serve again. Raises RunError where
    there is something and to `resume` wasn't asked for, or what is there is of other rows, settings or another seed.
    """
    identity = {"data": data, "rows": rows_sha256, "settings": _plain(settings), "seed": seed}
    path = out / _FILE
    try:
        if resume and path.exists():
            _compare(path, identity)
            return
        refuse_target(out)
        out.mkdir(parents=True)
        with new_file(path) as partial:
            partial.write_text(json.dumps(identity, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; choose another --out") from None


def refuse(out: Path, *, resume: bool) -> None:
    """Raise RunError if a sweep can't be made or gone on with at `out`; before the rows are read is better than after.

    A folder without a plan is no sweep's, and an empty one is left where a sweep was stopped at its very start.
    """
    try:
        planned = (out / _FILE).exists()
    except OSError as error:
        raise RunError(f"{out}: {error.strerror}; choose another --out") from None
    if planned and not resume:
        raise RunError(f"{out}: holds a sweep; expected --resume to go on with it, or another --out")
    if not planned:
        refuse_target(out)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep other sweeps out of `out`; raises RunError if one is at work there."""
    import fcntl  # not on Windows

    with (out / _FILE).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{out}: another sweep is at work there; expected to wait for its end") from None
        except OSError:  # a file system without locks
            pass
        yield


def _compare(path: Path, identity: dict[str, Any]) -> None:
    try:
        before = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path}: not a sweep's plan: {error}; choose another --out") from None
    for name, value in identity.items():
        there = before.get(name) if isinstance(before, dict) else None
        if there != value:
            raise RunError(f"{path}: of another sweep: {_difference(name, there, value)}; choose another --out")


def _difference(name: str, before: Any, now: Any) -> str:
    if name == "settings" and isinstance(before, dict):
        for setting in sorted(before.keys() | now.keys()):
            if before.get(setting) != now.get(setting):
                return f"{setting} was {json.dumps(before.get(setting))} and is {json.dumps(now.get(setting))}"
    if name == "rows":
        return "the rows or their labels changed since"
    return f"{name} was {before} and is {now}"


def _plain(settings: TrainConfig) -> dict[str, Any]:
    """Return the settings that models depend on, by `section.key`."""
    sections = settings.model_dump(mode="json")
    del sections["optimizer"]["checkpoint_seconds"], sections["data"]["memory_gib"], sections["objective"]["beta"]
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
