"""What each column of a table is, found in one pass over its rows, in memory that doesn't grow with them.

Only normal rows are looked at: the others are set aside before anything is learned.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from typing_extensions import override

from vaeserve.errors import DataError, InvalidInputError
from vaeserve.signature import MISSING, Column, Kind, as_categories
from vaeserve.source import is_number

What = Literal["numeric", "binary", "categorical", "constant", "date", "text", "id", "empty", "other"]

LEARNABLE: frozenset[What] = frozenset({"numeric", "binary", "categorical", "constant"})

# More different strings than this, or than half of the rows, are free text unless they are stated to be categories.
MOST_CATEGORIES = 1_000
MOST_STATED_CATEGORIES = 10_000
LONGEST_CATEGORY = 1_000  # characters
# Different numbers are counted up to here.
MOST_NUMBERS = 10_000
# Whole numbers that each follow the last by one count the rows; among fewer rows than this they may do so by chance.
FEWEST_COUNTED_ROWS = 20

_ID = re.compile(r"(?:(?:^|[_\W])(?:(?i:id|uuid|guid|key|index|idx|pk))|(?<=[a-z])(?:Id|ID|Key|Index))$")
_ISO_DATE = re.compile(r"\d{4}[-/]\d{2}[-/]\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?\s?(Z|[+-]\d{2}(:?\d{2})?)?)?")
_EXAMPLE = 40  # characters


@dataclass(frozen=True)
class ColumnReport:
    """What a column holds in the normal rows.

    missing: how many of the `rows` have no value. distinct: how many values differ; more than MOST_NUMBERS, or for
    strings MOST_CATEGORIES, means at least so many.
    """

    name: str
    what: What
    rows: int
    missing: int
    distinct: int
    example: str


@dataclass(frozen=True)
class Inferred:
    """The columns of a table as a model takes them, and what was seen in them."""

    columns: tuple[Column, ...]
    reports: tuple[ColumnReport, ...]


class Inference:
    """Looks at a table's columns a batch at a time: `update` with each batch, then `finish`.

    kinds: what the user states, which no look at the values overrules; only that it can't be is an error.
    """

    def __init__(self, source: str, schema: pa.Schema, *, names: Sequence[str], kinds: Mapping[str, Kind]) -> None:
        self._source = source
        self._looks = [_look(source, name, schema.field(name).type, kinds.get(name)) for name in names]

    def update(self, batch: pa.RecordBatch, normal: NDArray[np.bool_]) -> None:
        """Look at a batch, whose `normal` rows are learned from; raises DataError for a stated kind that can't be."""
        mask = None if normal.all() else pa.array(normal)
        for look in self._looks:
            values = batch.column(look.name)
            if pa.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            look.pass_by(values)
            look.update(values if mask is None else values.filter(mask))

    def finish(self) -> Inferred:
        """Return what the columns are.

        Raises DataError, naming the column, for a stated kind that can't be, and one for all the columns that nothing
        can be learned from.
        """
        reports = tuple(look.report() for look in self._looks)
        self._refuse([report for report in reports if report.what not in LEARNABLE])
        columns = tuple(look.column() for look in self._looks if isinstance(look, _Learnable))
        return Inferred(columns, reports)

    def _refuse(self, reports: list[ColumnReport]) -> None:
        if not reports:
            return
        first = reports[0]
        others = f" (and {len(reports) - 1} more)" if len(reports) > 1 else ""
        drops = " ".join(f"--drop {report.name!r}" for report in reports)
        hint = next(look.hint() for look in self._looks if look.name == first.name)
        raise DataError(
            f"{self._source}: column {first.name!r}{others}: {_why(first)}; expected numbers or categories, "
            f"or else {drops}{hint}"
        )


def _why(report: ColumnReport) -> str:
    observed = report.rows - report.missing
    match report.what:
        case "date":
            return f"dates, such as {report.example}"
        case "text":
            return f"free text, such as {report.example}, {report.distinct} or more different in {observed} rows"
        case "id":
            return f"an id, such as {report.example}, different in each row"
        case "empty":
            return f"missing in all {report.rows} rows"
        case _:
            return f"neither numbers nor text, such as {report.example}"


class _Look(ABC):
    """What is known of a column so far."""

    def __init__(self, source: str, name: str, stated: Kind | None) -> None:
        self.source = source
        self.name = name
        self.stated = stated
        self.rows = 0
        self.missing = 0
        self.example: object = None

    @property
    def observed(self) -> int:
        """How many of the rows have a value."""
        return self.rows - self.missing

    def pass_by(self, values: pa.Array) -> None:  # noqa: B027 - most looks need only the normal rows
        """See all rows of a batch, also those that aren't learned from."""

    @abstractmethod
    def update(self, values: pa.Array) -> None:
        """Look at the values of normal rows."""

    @property
    @abstractmethod
    def distinct(self) -> int:
        """How many values differ, as far as they are counted."""

    @abstractmethod
    def what(self) -> What:
        """Return what the column is; raises DataError for a stated kind that can't be."""

    def hint(self) -> str:
        """Return what else than dropping the column the user can do."""
        return ""

    def report(self) -> ColumnReport:
        """Return what the column holds."""
        example = repr(self.example)
        if len(example) > _EXAMPLE:
            example = example[: _EXAMPLE - 3] + "..."
        what: What = self.what() if self.observed else "empty"
        return ColumnReport(self.name, what, self.rows, self.missing, self.distinct, example)

    def refuse(self, holds: str, expected: str) -> DataError:
        """Return the error that the stated kind can't be."""
        return DataError(f"{self.source}: column {self.name!r} {holds}; --kind {self.name!r}={self.stated} {expected}")


class _Learnable(_Look):
    """What is known of a column that a model can take."""

    @abstractmethod
    def column(self) -> Column:
        """Return the column as a model takes it."""


def _look(source: str, name: str, kind: pa.DataType, stated: Kind | None) -> _Look:
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_dictionary)
    if any(is_text(kind) for is_text in text) or (stated == "categorical" and not pa.types.is_nested(kind)):
        return _Strings(source, name, stated)
    if is_number(kind):
        return _Numbers(source, name, stated)
    return _Others(source, name, stated, temporal=pa.types.is_temporal(kind))


class _Numbers(_Learnable):
    def __init__(self, source: str, name: str, stated: Kind | None) -> None:
        super().__init__(source, name, stated)
        self._least, self._most = np.inf, -np.inf
        self._whole = True
        self._odd: float | None = None  # the first value that is neither 0 nor 1
        self._values: NDArray[Any] = np.empty(0, np.uint8)  # which takes on any dtype
        self._counted = 0  # how many values those are of
        self._passed = 0
        self._last: Any = None
        self._follows = True

    @override
    def pass_by(self, values: pa.Array) -> None:
        if not self._follows or not len(values):
            return
        numbers = _numbers(values)
        counts = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
        if not counts or len(numbers) < len(values):
            self._follows = False
            return
        with np.errstate(invalid="ignore"):  # infinity follows nothing
            self._follows = bool((np.diff(numbers) == 1).all()) and self._last in (None, numbers[0] - 1)
        self._passed += len(values)
        self._last = numbers[-1]

    @override
    def update(self, values: pa.Array) -> None:
        numbers = _numbers(values)
        self.rows += len(values)
        self.missing += len(values) - len(numbers)
        if not len(numbers):
            return
        self.example = numbers[0].item() if self.example is None else self.example
        self._least, self._most = min(self._least, numbers.min()), max(self._most, numbers.max())
        self._whole = self._whole and bool((numbers == np.floor(numbers)).all())
        if self._odd is None:
            odd = numbers[(numbers != 0) & (numbers != 1)]
            self._odd = odd[0].item() if len(odd) else None
        if len(self._values) <= MOST_NUMBERS:
            # In one step, for a union would sort what is sorted.
            self._values = np.unique(np.concatenate([self._values, np.unique(numbers)]))
            self._counted += len(numbers)

    @property
    @override
    def distinct(self) -> int:
        return len(self._values)

    @override
    def what(self) -> What:
        if self.stated == "binary" and self._odd is not None:
            raise self.refuse(f"holds {self._odd:g}", "takes 0 and 1 alone")
        if self.stated is None and self._is_id():
            return "id"
        if self._least == self._most and not self.missing:
            return "constant"
        return "binary" if self._odd is None and self.stated != "numeric" else "numeric"

    def _is_id(self) -> bool:
        if self._follows and self._passed >= FEWEST_COUNTED_ROWS:
            return True
        differ = self._whole and len(self._values) == self._counted > 1
        return differ and _ID.search(self.name) is not None and self._odd is not None

    @override
    def hint(self) -> str:
        return f", or --kind {self.name!r}=numeric" if self.observed else ""

    @override
    def column(self) -> Column:
        kind: Kind = self.stated or ("binary" if self._odd is None else "numeric")
        return Column(self.name, kind, nullable=self.missing > 0)


def _numbers(values: pa.Array) -> NDArray[Any]:
    """Return the values that aren't missing, in a dtype that can be subtracted."""
    if pa.types.is_decimal(values.type) or pa.types.is_null(values.type):
        values = values.cast(pa.float64())
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    numbers: NDArray[Any] = values.drop_null().to_numpy(zero_copy_only=False)
    if numbers.dtype.kind == "f":
        numbers = numbers[~np.isnan(numbers)]
    elif numbers.dtype != np.uint64:
        numbers = numbers.astype(np.int64, copy=False)
    return numbers


class _Strings(_Learnable):
    def __init__(self, source: str, name: str, stated: Kind | None) -> None:
        super().__init__(source, name, stated)
        self._most = MOST_STATED_CATEGORIES if stated == "categorical" else MOST_CATEGORIES
        self._values: set[str] = set()
        self._counted = 0  # how many rows those are of
        self._longest = 0
        self._dates = True

    @override
    def update(self, values: pa.Array) -> None:
        self.rows += len(values)
        if len(self._values) > self._most or self._longest > LONGEST_CATEGORY:
            self.missing += values.null_count
            return
        counts = pyarrow.compute.value_counts(values)
        strings = self._strings(counts.field("values"))
        for string, count in zip(strings, counts.field("counts").to_pylist(), strict=True):
            if string == MISSING:
                self.missing += count
                continue
            self._counted += count
            if string in self._values:
                continue
            if "\0" in string:
                raise self.refuse("holds text with a NUL character", "takes none")
            self.example = string if self.example is None else self.example
            self._longest = max(self._longest, len(string))
            self._dates = self._dates and _ISO_DATE.fullmatch(string) is not None
            if len(self._values) <= self._most and self._longest <= LONGEST_CATEGORY:
                self._values.add(string)

    def _strings(self, values: pa.Array) -> list[str]:
        if pa.types.is_integer(values.type):
            values = values.cast(pa.string())  # or else a null would make floats of them
        try:
            strings: list[str] = as_categories(self.name, values.to_numpy(zero_copy_only=False)).tolist()
        except InvalidInputError as error:
            raise DataError(f"{self.source}: {str(error).removeprefix('rows: ')}") from None
        return strings

    @property
    @override
    def distinct(self) -> int:
        return len(self._values)

    @override
    def what(self) -> What:
        if self.stated in ("numeric", "binary"):
            raise self.refuse(
                f"holds {self.example!r}", "takes numbers" if self.stated == "numeric" else "takes 0 and 1"
            )
        if self.stated:
            self._refuse_too_many()
        elif len(self._values) == self._counted > 1 and _ID.search(self.name):
            return "id"
        elif self._dates:
            return "date"
        if len(self._values) == 1 and not self.missing:
            return "constant"
        return "categorical" if self.stated or self._repeats() else "text"

    def _repeats(self) -> bool:
        few = len(self._values) <= min(self._most, self._counted / 2)
        return few and self._longest <= LONGEST_CATEGORY

    def _refuse_too_many(self) -> None:
        if self._longest > LONGEST_CATEGORY:
            raise self.refuse(f"holds a text of {self._longest} characters", f"takes {LONGEST_CATEGORY} at most")
        if len(self._values) > self._most:
            raise self.refuse(f"has more than {self._most} categories", "takes no more")
        if len(self._values) == self._counted > 1:
            raise self.refuse(f"has as many categories as rows, {self._counted}", "takes some that come more than once")

    @override
    def hint(self) -> str:
        return f", or --kind {self.name!r}=categorical" if self.observed else ""

    @override
    def column(self) -> Column:
        return Column(self.name, "categorical", tuple(sorted(self._values)), nullable=self.missing > 0)


class _Others(_Look):
    def __init__(self, source: str, name: str, stated: Kind | None, *, temporal: bool) -> None:
        super().__init__(source, name, stated)
        self._temporal = temporal

    @override
    def update(self, values: pa.Array) -> None:
        self.rows += len(values)
        self.missing += values.null_count
        if self.example is None and len(present := values.drop_null()):
            self.example = str(present[0]) if self._temporal else present[0].as_py()

    @property
    @override
    def distinct(self) -> int:
        return 0

    @override
    def what(self) -> What:
        if self.stated:
            raise self.refuse(f"holds {self.example!r}", "takes numbers, or text for categories")
        return "date" if self._temporal else "other"
