"""A job: a plan over an input, a task for each row, and the folder that the shards' parts go to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from vaeserve.errors import ConfigError, DataError, InvalidInputError
from vaeserve.signature import Signature
from vaeserve.source import Source, inputs_of
from vaeserve_jobs.model import Address, Inputs, Model
from vaeserve_jobs.part import PartWriter, new_part, part_name
from vaeserve_jobs.plan import Plan
from vaeserve_jobs.store import Store
from vaeserve_jobs.task import Answer, Task

BATCH_ROWS = 32_768
BATCH_BYTES = 4 * 2**20


class Skipped(NamedTuple):
    """A file that broke off, by its position, and why."""

    file: int
    reason: str


class Computed(NamedTuple):
    """Rows for the output, and what came of the batch that they were in."""

    rows: pa.RecordBatch
    answer: Answer


@dataclass(frozen=True)
class Job:
    """All that it takes to run any of the shards, wherever; the model is opened there from its address."""

    plan: Plan
    source: Source
    task: Task
    schema: pa.Schema
    signature: Signature
    out: str
    address: Address
    skip_bad_files: bool = False

    def read(self, shard: int) -> Iterator[pa.RecordBatch | Skipped]:
        """Yield a shard's rows in order, always cut into the same batches.

        Where a file breaks off, and those are to be skipped, that is yielded in the place of its other rows. Raises
        DataError, naming the file.
        """
        for piece in self.plan.shards[shard]:
            try:
                yield from self.source.read(piece, list(self.plan.columns), batch_rows(self.signature))
            except DataError as error:
                if not self.skip_bad_files:
                    raise
                yield Skipped(piece.file, str(error))

    def inputs(self, batch: pa.RecordBatch) -> Inputs:
        """Return a batch as the model's inputs; raises InvalidInputError, naming the input and the column."""
        try:
            return inputs_of(batch, self.signature)
        except InvalidInputError as error:
            raise InvalidInputError(f"{self.source.name}: {error}") from None

    def compute(self, model: Model, batch: pa.RecordBatch) -> Computed:
        """Return a batch's rows of the output; raises as `inputs` does."""
        answer = self.task.compute(model, self.inputs(batch))
        kept = batch.select(list(self.plan.keep)).columns
        rows = pa.RecordBatch.from_arrays([*kept, *answer.columns], schema=self.schema)
        return Computed(rows if answer.kept is None else rows.filter(pa.array(answer.kept)), answer)

    @contextmanager
    def part(self, shard: int) -> Iterator["Part"]:
        """Yield what takes a shard's rows; its part appears if all goes well."""
        with (
            Store(self.out).new(part_name(shard)) as path,
            new_part(path, self.schema, plan=self.plan.fingerprint, top=self.task.top) as writer,
        ):
            yield Part(self, writer)


class Part:
    """A shard's output as it is made."""

    def __init__(self, job: Job, writer: PartWriter) -> None:
        self._writer = writer
        self._calibration = job.plan.summary
        self.tally = writer.tally

    def add(self, computed: Computed | Skipped) -> int:
        """Write and count what came of the next batch, and return how many rows it had."""
        if isinstance(computed, Skipped):
            self.tally.skipped.append(computed)
            return 0
        rows, answer = computed
        self.tally.add(answer.status, written=rows.num_rows)
        if answer.scores is not None:
            self.tally.add_scores(answer.scores, self._calibration)
        self._writer.write(rows)
        return len(answer.status)


def batch_rows(signature: Signature) -> int:
    """Return how many rows of a signature make a batch, and a message that a service takes."""
    return max(1, min(BATCH_ROWS, BATCH_BYTES // signature.row_bytes))


def output_schema(source: Source, model: Model, task: Task, keep: Sequence[str]) -> pa.Schema:
    """Return the columns of the output: those that are kept, and the task's; raises ConfigError for one that is twice.

    Its metadata say which model it is of.
    """
    made = task.fields(model)
    taken = [name for name in keep if name in {field.name for field in made}]
    if taken:
        raise ConfigError(f"--keep {taken[0]}: the output has a column of that name; expected another")
    if twice := [name for name in keep if keep.count(name) > 1]:
        raise ConfigError(f"--keep {twice[0]}: is given twice; expected each once")
    identity = model.identity
    metadata = {
        "vaeserve.model": identity.name,
        "vaeserve.model_version": identity.version,
        "vaeserve.manifest_sha256": identity.manifest_sha256,
    }
    return pa.schema([*(source.schema.field(name) for name in keep), *made], metadata=metadata)
