"""The plan of a job, written before anything else: what is read, by which model and how, and how it is cut into shards.

It follows from the input, the model and the options alone: whoever makes it, makes the same.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import vaeserve
from vaeserve.errors import ConfigError, DataError
from vaeserve.files import File, files_at
from vaeserve.manifest import CalibrationSummary
from vaeserve.source import BUILT_IN, IMAGE, Source
from vaeserve.tables import READERS, Piece
from vaeserve_jobs.model import Identity, Model
from vaeserve_jobs.task import Task

FORMAT = 1
# What is lost if a job is killed, and what a worker takes at a time.
SHARD_ROWS = 2**20
SHARD_BYTES = 2**30

_MOST_NAMED = 10

Shard = tuple[Piece, ...]


@dataclass(frozen=True)
class Plan:
    """What a job will do, and in which pieces.

    files: name, size and time of each file, by its position. skipped: files that can't be read, and why, where those
    were to be left out. columns: the types of the input's columns that are read.
    """

    version: str
    task: dict[str, Any]
    keep: tuple[str, ...]
    model: Identity
    calibration: dict[str, Any]
    input: str
    columns: dict[str, str]
    files: tuple[tuple[str, int, int | None], ...]
    skipped: tuple[tuple[str, str], ...]
    shards: tuple[Shard, ...]

    @cached_property
    def content(self) -> bytes:
        """The plan as it is written: the same bytes for the same plan."""
        lines = (
            f" {json.dumps(name)}: {json.dumps(value)}" for name, value in {"format": FORMAT, **asdict(self)}.items()
        )
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    @cached_property
    def fingerprint(self) -> str:
        """What tells it from other plans."""
        return hashlib.sha256(self.content).hexdigest()

    @classmethod
    def read(cls, content: bytes, name: str) -> Self:
        """Return the plan of a file's bytes; raises ConfigError, naming it, if they are none."""
        try:
            said = json.loads(content)
            if said.pop("format") != FORMAT:
                raise ValueError("of another format")
            said["model"] = Identity(**said["model"])
            said["shards"] = tuple(tuple(Piece(*piece) for piece in shard) for shard in said["shards"])
            for field in ("keep", "files", "skipped"):
                said[field] = tuple(tuple(one) if isinstance(one, list) else one for one in said[field])
            return cls(**said)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{name}: {error}: no plan of this version; expected another --out") from None

    @property
    def summary(self) -> CalibrationSummary:
        """What calibrated the model."""
        return CalibrationSummary.model_validate_json(json.dumps(self.calibration))

    def rows(self, shard: int) -> int:
        """Return how many rows a shard has, or about as many."""
        return sum(piece.rows for piece in self.shards[shard])

    def differences(self, other: "Plan") -> Iterator[str]:
        """Yield what is different in `other`, a thing each."""
        if self.version != other.version:
            yield f"vaeserve: {other.version}, was {self.version}"
        yield from _differences("model", asdict(self.model), asdict(other.model))
        yield from _differences("option", self.task, other.task)
        if self.keep != other.keep:
            yield f"option keep: {', '.join(other.keep) or 'none'}, was {', '.join(self.keep) or 'none'}"
        if self.input != other.input:
            yield f"input: {other.input}, was {self.input}"
        ours, theirs = ({name: stat for name, *stat in plan.files} for plan in (self, other))
        yield from (f"input: {name} is new" for name in theirs if name not in ours)
        yield from (f"input: {name} is gone" for name in ours if name not in theirs)
        yield from (f"input: {name} has changed" for name in ours if ours[name] != theirs.get(name, ours[name]))
        yield from _differences("column", self.columns, other.columns)
        if self.skipped != other.skipped:
            yield "input: other files can't be read"
        if self.shards != other.shards:
            yield "option shard-rows: other shards"


def make_plan(
    source: Source, model: Model, task: Task, *, keep: Sequence[str], shard_rows: int | None, skip_bad_files: bool
) -> Plan:
    """Return the plan of a job.

    Reads what each file says of itself. Raises DataError, naming all of them, for files that can't be read or lack a
    column, unless they are to be skipped; and DataError where no rows are left.
    """
    columns = columns_of(source, model, keep)
    rows = shard_rows or max(1, min(SHARD_ROWS, SHARD_BYTES // model.signature.row_bytes))
    files = source.files or _files_of(source)
    cuts = _cut(source, columns, rows)
    bad = [(files[number].name, str(error)) for number, error in cuts.items() if isinstance(error, DataError)]
    if bad and not skip_bad_files:
        raise DataError(_all(bad, len(files)))
    shards = tuple(_pack((piece for cut in cuts.values() if isinstance(cut, list) for piece in cut), rows))
    if not shards:
        raise DataError(f"{source.name}: no rows; expected one or more")
    return Plan(
        version=vaeserve.__version__,
        task=task.to_json(),
        keep=tuple(keep),
        model=model.identity,
        calibration=model.calibration.model_dump(mode="json"),
        input=source.name,
        columns={name: str(source.schema.field(name).type) for name in columns},
        files=tuple((file.name, file.size, file.modified_ns) for file in files),
        skipped=tuple(bad),
        shards=shards,
    )


def columns_of(source: Source, model: Model, keep: Sequence[str]) -> list[str]:
    """Return which columns are read: the model's and those to keep."""
    names = [column.name for column in model.signature.columns] or [IMAGE]
    # A column of the model's that isn't there is said by the model, with the others.
    return list(dict.fromkeys([*(name for name in names if name in source.schema.names), *keep]))


def _files_of(source: Source) -> list[File]:
    return [] if source.name in BUILT_IN else files_at(source.name) or []


def _cut(source: Source, columns: Sequence[str], rows: int) -> dict[int, list[Piece] | DataError]:
    """Return the pieces of each file, or why there are none."""

    def cut(number: int) -> list[Piece] | DataError:
        try:
            pieces = source.cut(number, rows)
        except DataError as error:
            return error
        if missing := source.missing(number, columns):
            return DataError(f"{source.files[number].name}: no column {missing[0]!r}, which the first file has")
        return pieces

    with ThreadPoolExecutor(READERS) as readers:
        return dict(enumerate(readers.map(cut, range(max(1, len(source.files))))))


def _pack(pieces: Iterator[Piece], rows: int) -> Iterator[Shard]:
    """Yield shards of pieces that follow each other, of `rows` rows at most where a piece has no more."""
    shard: list[Piece] = []
    for piece in pieces:
        if shard and sum(part.rows for part in shard) + piece.rows > rows:
            yield tuple(shard)
            shard = []
        last = shard[-1] if shard else None
        if last and (last.file, last.stop) == (piece.file, piece.start):
            shard[-1] = Piece(last.file, last.start, piece.stop, last.rows + piece.rows)
        elif piece.stop > piece.start:
            shard.append(piece)
    if shard:
        yield tuple(shard)


def _all(bad: Sequence[tuple[str, str]], files: int) -> str:
    if len(bad) == 1:
        return bad[0][1]
    named = "; ".join(reason for _, reason in bad[:_MOST_NAMED])
    more = f"; and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
    return f"{len(bad)} of {files} files can't be read: {named}{more}; --skip-bad-files leaves them out"


def _differences(what: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield f"{what} {name}: {new.get(name)}, was {old.get(name)}"
