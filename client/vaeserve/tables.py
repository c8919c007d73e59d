"""Tables in files: Parquet, CSV and JSON lines, whole or in pieces, all files of a folder as if they were one.

A piece is what can be read without the rest of its file: row groups of Parquet, lines of text.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from vaeserve.errors import DataError, first_line
from vaeserve.files import File

# Text is parsed by the block, as many at once as there are processors; a line must fit in.
BLOCK = 2**20
# Parquet's columns are read side by side, and all of them wait in so many bytes at most.
READ_BYTES = 32 * 2**20
# Enough to hide how long an object store takes to answer.
READERS = 16
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"

Types = Mapping[str, pa.DataType]


class Piece(NamedTuple):
    """A part of a file, by its position: from `start` to before `stop` in what its format counts, about `rows` rows."""

    file: int
    start: int
    stop: int
    rows: int


class Head(NamedTuple):
    """What a file's beginning, or end, says: its columns, Parquet's rows by row group, or the bytes of a line."""

    schema: pa.Schema
    row_groups: tuple[int, ...] = ()
    row_bytes: float = 0


class Format(Protocol):
    """How files of a format are read. What is wrong with a file is raised as pyarrow raises it."""

    def head(self, file: File) -> Head:
        """Return what the file says of itself; as little of it is read as that takes."""
        ...

    def guesses(self, kind: pa.DataType) -> bool:
        """Tell whether a column of this type in the head may be of another in later rows."""
        ...

    def cut(self, file: File, head: Head, rows: int) -> list[tuple[int, int, int]]:
        """Return pieces of `rows` rows or so, as (start, stop, rows)."""
        ...

    def read(self, file: File, head: Head, piece: Piece, schema: pa.Schema, *, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the columns of `schema` that the file has, at most `rows` rows at a time."""
        ...


@dataclass(frozen=True)
class Table:
    """The files of a table in one format; their columns are those of the first that can be read, and their folders'.

    heads: what each file says, or why it can't be read. partitions: each file's values of its folders' `NAME=VALUE`.
    """

    files: tuple[File, ...]
    format: Format
    heads: tuple[Head | DataError, ...]
    partitions: tuple[dict[str, Any], ...]
    schema: pa.Schema

    @classmethod
    def open(cls, files: Sequence[File], folder: str) -> Self:
        """Read what each file says of itself; raises DataError if they aren't of one format, or none can be read."""
        form = _format_of(files)
        with ThreadPoolExecutor(READERS) as readers:
            heads = tuple(readers.map(lambda file: _head(form, file), files))
        read = [head for head in heads if isinstance(head, Head)]
        if not read:
            raise next(head for head in heads if isinstance(head, DataError))
        partitions, types = _partitions([file.name.removeprefix(folder) for file in files])
        schema = reduce(_with, types.items(), read[0].schema)
        return cls(tuple(files), form, heads, partitions, schema)

    @property
    def rows(self) -> int | None:
        """How many rows there are, where the files say so."""
        if any(isinstance(head, DataError) or head.row_bytes for head in self.heads):
            return None
        return sum(sum(head.row_groups) for head in self.heads if isinstance(head, Head))

    @property
    def guessed(self) -> frozenset[str]:
        """The columns whose types are guessed from a file's first rows."""
        folders = {name for values in self.partitions for name in values}
        return frozenset(f.name for f in self.schema if f.name not in folders and self.format.guesses(f.type))

    def retyped(self, types: Types) -> Self:
        """Return the table with columns of text files read as these types."""
        if isinstance(self.format, Parquet):
            return self
        if isinstance(self.format, JsonLines):  # whose values say which of them are text, where there are any
            nulls = {field.name for field in self.schema if pa.types.is_null(field.type)}
            types = {name: kind for name, kind in types.items() if name in nulls or not pa.types.is_string(kind)}
        fields = [field.with_type(types.get(field.name, field.type)) for field in self.schema]
        return replace(self, schema=pa.schema(fields))

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield all rows; raises DataError, naming the file."""
        for number, file in enumerate(self.files):
            yield from self.read(Piece(number, 0, self._end(number, file), 0), self.schema.names, rows)

    def cut(self, file: int, rows: int) -> list[Piece]:
        """Return a file's pieces, of `rows` rows or so; raises DataError, naming the file, if it can't be read."""
        pieces = self._try(file, lambda head: self.format.cut(self.files[file], head, rows))
        return [Piece(file, *piece) for piece in pieces]

    def missing(self, file: int, columns: Sequence[str]) -> list[str]:
        """Return which of some columns a file lacks."""
        head = self.heads[file]
        there = [*(head.schema.names if isinstance(head, Head) else ()), *self.partitions[file]]
        return [name for name in columns if name not in there]

    def read(self, piece: Piece, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield some columns of a piece, in their order, at most `rows` rows at a time; those it lacks are null.

        Raises DataError, naming the file.
        """
        file = self.files[piece.file]
        wanted = pa.schema([self.schema.field(name) for name in columns])
        stored = pa.schema([field for field in wanted if not self.missing(piece.file, [field.name])])
        stored = pa.schema([field for field in stored if field.name not in self.partitions[piece.file]])
        head = self._try(piece.file, lambda head: head)
        batches = self.format.read(file, head, piece, stored, rows=rows)
        try:
            for batch in batches:
                if batch.num_rows:
                    yield _fitted(batch, wanted, self.partitions[piece.file])
            if file.has_changed():
                raise DataError(f"{file.name}: has changed since it was looked at; expected it to stay as it was")
        except (pa.ArrowException, OSError, EOFError) as error:
            raise DataError(f"{file.name}: {_named(first_line(error), head.schema.names)}") from None

    def _end(self, number: int, file: File) -> int:
        head = self.heads[number]
        return len(head.row_groups) if isinstance(head, Head) and not head.row_bytes else file.size

    def _try(self, number: int, what: Callable[[Head], Any]) -> Any:
        head = self.heads[number]
        if isinstance(head, DataError):
            raise head
        try:
            return what(head)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.files[number].name}: {first_line(error)}") from None


class Parquet:
    """Parquet, by the row group; bits that rotted are told where the writer left checksums."""

    def head(self, file: File) -> Head:
        """Read the footer."""
        with file.open() as opened, pa.parquet.ParquetFile(opened) as parquet:
            metadata = parquet.metadata
            groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
            return Head(parquet.schema_arrow, groups)

    def guesses(self, kind: pa.DataType) -> bool:
        """Tell that none is guessed: the footer says it."""
        del kind
        return False

    def cut(self, file: File, head: Head, rows: int) -> list[tuple[int, int, int]]:
        """Return each row group: what holds more rows than asked for can't be cut."""
        del file, rows
        return [(number, number + 1, many) for number, many in enumerate(head.row_groups)]

    def read(self, file: File, head: Head, piece: Piece, schema: pa.Schema, *, rows: int) -> Iterator[pa.RecordBatch]:
        """Decode a few pages at a time: a row group may be larger than memory."""
        groups = range(piece.start, piece.stop)
        if not schema.names:
            for group in groups:
                yield from _empty_columns(head.row_groups[group], rows)
            return
        buffer = max(2**16, READ_BYTES // len(schema.names))
        with (
            file.open() as opened,
            pa.parquet.ParquetFile(opened, buffer_size=buffer, pre_buffer=False, page_checksum_verification=True) as it,
        ):
            # Arrow's threads would take turns with those that compute, who then find their caches emptied.
            yield from it.iter_batches(rows, row_groups=list(groups), columns=schema.names, use_threads=False)


class Csv:
    """Comma-separated values with a header; types are guessed from the first block, unless stated."""

    def head(self, file: File) -> Head:
        """Read the first block."""
        with file.stream() as stream:
            options = pa.csv.ReadOptions(block_size=BLOCK, use_threads=False)
            first = _first(pa.csv.open_csv(stream, options, self._parsing))
        return Head(first.schema, row_bytes=_row_bytes(file, first))

    def guesses(self, kind: pa.DataType) -> bool:
        """Tell that each is guessed: all that is written is text."""
        del kind
        return True

    def cut(self, file: File, head: Head, rows: int) -> list[tuple[int, int, int]]:
        """Cut at the ends of lines where no value can hold one: in a file without quotes but in its header."""
        return _cut_lines(file, head, rows, lambda: _has_quoted_values(file))

    def read(self, file: File, head: Head, piece: Piece, schema: pa.Schema, *, rows: int) -> Iterator[pa.RecordBatch]:
        """Parse a block at a time."""
        names = head.schema.names if piece.start else None
        options = pa.csv.ReadOptions(block_size=BLOCK, column_names=names)
        types = {field.name: field.type for field in schema}
        convert = pa.csv.ConvertOptions(column_types=types, include_columns=schema.names)
        with file.stream(piece.start, piece.stop) as stream:
            yield from _slices(pa.csv.open_csv(stream, options, self._parsing, convert), rows)

    _parsing = pa.csv.ParseOptions(newlines_in_values=True)


class JsonLines:
    """JSON, an object a line."""

    def head(self, file: File) -> Head:
        """Read the first block."""
        with file.stream() as stream:
            options = pa.json.ReadOptions(block_size=BLOCK, use_threads=False)
            first = _first(pa.json.open_json(stream, options))
        return Head(first.schema, row_bytes=_row_bytes(file, first))

    def guesses(self, kind: pa.DataType) -> bool:
        """Tell that those are of which there was no value: one says whether it is a number or text."""
        return bool(pa.types.is_null(kind))

    def cut(self, file: File, head: Head, rows: int) -> list[tuple[int, int, int]]:
        """Cut at the ends of lines, of which JSON has none within a value."""
        return _cut_lines(file, head, rows, lambda: False)

    def read(self, file: File, head: Head, piece: Piece, schema: pa.Schema, *, rows: int) -> Iterator[pa.RecordBatch]:
        """Parse a block at a time; fields that aren't asked for are passed over."""
        del head
        parsing = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        with file.stream(piece.start, piece.stop) as stream:
            options = pa.json.ReadOptions(block_size=BLOCK)
            yield from _slices(pa.json.open_json(stream, options, parsing), rows)


FORMATS: dict[str, Format] = {".csv": Csv(), ".parquet": Parquet(), ".jsonl": JsonLines(), ".ndjson": JsonLines()}


def _format_of(files: Sequence[File]) -> Format:
    suffixes = sorted({file.suffix for file in files})
    if len({type(FORMATS[suffix]) for suffix in suffixes}) > 1:
        raise DataError(f"{files[0].name}: beside files of {', '.join(suffixes)}; expected a folder of one format")
    return FORMATS[suffixes[0]]


def _head(form: Format, file: File) -> Head | DataError:
    try:
        head = form.head(file)
        names = head.schema.names  # which raises for names that are no UTF-8
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"multiple columns named {name}; expected each once")
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        return DataError(f"{file.name}: can't be read as {file.suffix}: {first_line(error)}")
    return head


def _named(message: str, names: list[str]) -> str:
    """Return what Arrow says of a CSV file's column by the column's name, and why it says so."""
    column = re.match(r"In CSV column #(\d+)", message)
    if column is None:
        return message
    return (
        f"column {names[int(column[1])]!r}{message[column.end() :]}; a CSV file's column is what its "
        "first rows look like, unless it is stated to be categorical"
    )


def _with(schema: pa.Schema, field: tuple[str, pa.DataType]) -> pa.Schema:
    """Return a schema with a field more, unless it has one of that name."""
    return schema if field[0] in schema.names else schema.append(pa.field(*field))


def _partitions(paths: Sequence[str]) -> tuple[tuple[dict[str, Any], ...], dict[str, pa.DataType]]:
    """Return the values of each path's folders `NAME=VALUE`, as Hive writes them, and the columns' types."""
    texts = [dict(_pairs(path)) for path in paths]
    names = list(dict.fromkeys(name for values in texts for name in values))
    whole = {name: all(_is_whole(values.get(name)) for values in texts) for name in names}
    values = tuple(
        {name: int(text) if whole[name] and text is not None else text for name, text in of_path.items()}
        for of_path in texts
    )
    return values, {name: pa.int64() if whole[name] else pa.string() for name in names}


def _pairs(path: str) -> Iterator[tuple[str, str | None]]:
    for folder in path.split("/")[:-1]:
        name, equals, text = folder.partition("=")
        if equals:
            yield unquote(name), None if text == NULL_PARTITION else unquote(text)


def _is_whole(text: str | None) -> bool:
    # `01` is a code, not a number: as text it keeps its zero.
    return text is None or re.fullmatch(r"0|-?[1-9][0-9]{0,17}", text) is not None


def _fitted(batch: pa.RecordBatch, schema: pa.Schema, partition: Mapping[str, Any]) -> pa.RecordBatch:
    """Return a batch with a schema's columns: its own as that has them, its folder's, and null for those it lacks."""
    if batch.schema.equals(schema):
        return batch
    columns = []
    for field in schema:
        if field.name in batch.schema.names:
            columns.append(_cast(batch.column(field.name), field))
        else:
            columns.append(pa.repeat(pa.scalar(partition.get(field.name)).cast(field.type), batch.num_rows))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast(column: pa.Array, field: pa.Field) -> pa.Array:
    try:
        return column if column.type == field.type else column.cast(field.type)
    except pa.ArrowException as error:
        raise pa.ArrowInvalid(f"column {field.name!r}: {column.type}; expected {field.type}: {error}") from None


def _empty_columns(count: int, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches of rows with nothing in them but a column of nulls, for their number."""
    for start in range(0, count, rows):
        yield pa.record_batch([pa.nulls(min(rows, count - start))], names=[""])


def _first(reader: Any) -> pa.RecordBatch:
    """Return the first batch of a stream, empty where there is none."""
    return next(iter(reader), None) or pa.RecordBatch.from_pylist([], schema=reader.schema)


def _row_bytes(file: File, first: pa.RecordBatch) -> float:
    """Return the bytes of a line; infinitely many where there is none but perhaps a header."""
    rows = int(first.num_rows)
    return min(file.size, BLOCK) / rows if rows else math.inf


def _slices(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


def _cut_lines(file: File, head: Head, rows: int, whole: Callable[[], bool]) -> list[tuple[int, int, int]]:
    """Return pieces of a text file that end with a line, of one length but for that; one if it must stay `whole`."""
    if head.row_bytes == math.inf:
        return []
    length = max(1, int(rows * head.row_bytes))
    ends = [0, file.size]
    if file.size > length and not file.compressed and not whole():
        with file.open() as opened:
            inner = {_line_end(opened, position, file.size) for position in range(length, file.size, length)}
        ends = sorted({0, file.size} | inner)
    return [(start, stop, max(1, round((stop - start) / head.row_bytes))) for start, stop in pairwise(ends)]


def _line_end(opened: pa.NativeFile, position: int, size: int) -> int:
    """Return the position after the first line's end at or after `position`."""
    while position < size:
        block: bytes = opened.read_at(2**16, position)
        end = block.find(b"\n")
        if end >= 0:
            return position + end + 1
        position += len(block)
    return size


def _has_quoted_values(file: File) -> bool:
    """Tell whether there is a quote past the first line, or one that the first line doesn't close."""
    with file.stream() as stream:
        block = stream.read(BLOCK)
        header, _, block = block.partition(b"\n")
        if header.count(b'"') % 2:
            return True
        while block:
            if b'"' in block:
                return True
            block = stream.read(8 * BLOCK)
    return False
