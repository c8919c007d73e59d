"""What a model takes: its input tensors and, for a table, its columns."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vaeserve.errors import InvalidInputError

Kind = Literal["numeric", "binary", "categorical"]
DType = Literal["FLOAT32", "UINT8", "STRING"]

MISSING = ""  # as a category; among numbers it is NaN
MISSING_CODE = -1

_AS_THEY_ARE = (np.float32, np.float16, np.int64, np.int32, np.uint8)
_NUMPY: dict[DType, np.dtype[Any]] = {
    "FLOAT32": np.dtype(np.float32),
    "UINT8": np.dtype(np.uint8),
    "STRING": np.dtype(object),
}
# Strings have no fixed width; most categories are shorter than this, with what the wire adds.
_STRING_BYTES = 32


@runtime_checkable
class DataFrame(Protocol):
    """A table with the dataframe interchange protocol."""

    def __dataframe__(self) -> Any: ...


@runtime_checkable
class ArrowTable(Protocol):
    """A table with the Arrow PyCapsule interface, which Polars has in place of the interchange protocol."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


# Lists may hold None, which is missing.
Values = ArrayLike | Sequence[Any]
Rows = Values | Mapping[str, Values] | DataFrame | ArrowTable


# To pydantic, which reads these as parts of a manifest and takes the text below each field into its JSON schema.
_PART: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True)
class TensorSpec:
    """An input tensor."""

    __pydantic_config__: ClassVar = _PART

    name: str
    """`numeric`, `categorical` or `image`."""
    dtype: DType
    """Of its values, as the wire names it."""
    shape: tuple[int, ...]
    """Its lengths, -1 for the rows."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    __pydantic_config__: ClassVar = _PART

    name: str
    """Its name."""
    kind: Kind
    """Numeric, binary (0 or 1), or categorical, which takes one of `categories`."""
    categories: tuple[str, ...] = ()
    """Those that the model knows; for categorical columns alone."""
    nullable: bool = False
    """Whether the model learned what it means that the value is missing."""

    def __post_init__(self) -> None:
        if (self.kind == "categorical") != bool(self.categories):
            raise ValueError(
                f"column {self.name!r}: {self.kind} with {len(self.categories)} categories; expected some for "
                "categorical, and none for others"
            )
        # NumPy's strings lose what NULs they end with.
        if any("\0" in category for category in self.categories):
            raise ValueError(f"column {self.name!r}: categories with NUL; expected text without")
        if len(set(self.categories)) < len(self.categories) or MISSING in self.categories:
            raise ValueError(f"column {self.name!r}: categories {self.categories}; expected each once, and none empty")


@dataclass(frozen=True)
class Signature:
    """A model's inputs, and a table's columns in the order of the tensors' columns."""

    __pydantic_config__: ClassVar = _PART

    inputs: tuple[TensorSpec, ...]
    """The input tensors, raw."""
    columns: tuple[Column, ...] = ()
    """A table's columns; none for images."""

    def __post_init__(self) -> None:
        shapes = [spec.shape for spec in self.inputs]
        if self.columns:
            agrees = self.inputs == _inputs_of(self.columns)
        else:
            agrees = [len(shape) for shape in shapes] == [4] and min(shapes[0][1:]) > 0
        if not agrees:
            raise ValueError(
                f"inputs of shape {shapes} and {len(self.columns)} columns; expected one that has them all"
            )

    @classmethod
    def table(cls, columns: Sequence[Column]) -> Self:
        """Return the signature of a table: `numeric` takes its numeric and binary columns, `categorical` the others."""
        return cls(_inputs_of(columns), tuple(columns))

    @classmethod
    def numbers(cls, names: Sequence[str]) -> Self:
        """Return the signature of a table of numbers."""
        return cls.table([Column(name, "numeric") for name in names])

    @classmethod
    def image(cls, shape: tuple[int, int, int]) -> Self:
        """Return the signature of images of `shape`: channels, height, width."""
        return cls((TensorSpec("image", "UINT8", (-1, *shape)),))

    @cached_property
    def features(self) -> tuple[str, ...]:
        """The features' names: the columns', or `pixel[channel, y, x]`."""
        if self.columns:
            return tuple(column.name for column in self.columns)
        _, *shape = self.inputs[0].shape
        return tuple(f"pixel{list(index)}" for index in np.ndindex(*shape))

    @cached_property
    def numeric_columns(self) -> tuple[Column, ...]:
        """The columns of the input `numeric`, in its order: numeric and binary ones."""
        return tuple(column for column in self.columns if column.kind != "categorical")

    @cached_property
    def categorical_columns(self) -> tuple[Column, ...]:
        """The columns of the input `categorical`, in its order."""
        return tuple(column for column in self.columns if column.kind == "categorical")

    @cached_property
    def row_bytes(self) -> int:
        """About how many bytes a row has as input tensors: exact for numbers, 32 for each string."""
        return sum(
            math.prod(spec.shape[1:]) * (_STRING_BYTES if spec.dtype == "STRING" else _NUMPY[spec.dtype].itemsize)
            for spec in self.inputs
        )

    def inputs_from(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return `rows` as the input tensors.

        Rows are the input tensors by name, an array where there is one input, or named columns: a mapping of arrays,
        or a dataframe. Columns are matched by name, in any order; others than the model's are left out. None and NaN
        are missing; whole numbers and truths are categories by what they are as text, and categories that the model
        doesn't know are passed on, for a row's status to tell.

        Raises InvalidInputError, naming the column, where they don't fit.
        """
        names = [spec.name for spec in self.inputs]
        if isinstance(rows, Mapping) and set(rows) == set(names):
            return self.check({name: array_of(rows[name]) for name in names})
        if isinstance(rows, Mapping):
            return self.check(self._from_columns(rows))
        if isinstance(rows, np.ndarray | list | tuple):
            return self.check({"": array_of(rows)})
        return self.check(self._from_columns(_columns_of(rows, self)))

    def _from_columns(self, columns: Mapping[str, Values]) -> dict[str, NDArray[Any]]:
        if not self.columns:
            raise InvalidInputError(f"rows: named columns; the model takes {_describe(self.inputs[0])}")
        missing = [column.name for column in self.columns if column.name not in columns]
        if missing:
            raise InvalidInputError(
                f"rows: column {missing[0]!r} is missing{_and_more(missing)}; the model takes "
                f"{', '.join(column.name for column in self.columns)}"
            )
        numbers = [_number_column(column.name, columns[column.name]) for column in self.numeric_columns]
        strings = [as_categories(column.name, columns[column.name]) for column in self.categorical_columns]
        lengths = {len(array) for array in (*numbers, *strings)}
        if len(lengths) > 1:
            raise InvalidInputError(f"rows: columns of {sorted(lengths)} rows; expected all of one length")
        arrays = {"numeric": numbers, "categorical": strings}
        # Row by row, which reads all columns at once, in half the time of writing one after another with gaps.
        return {spec.name: np.ascontiguousarray(np.stack(arrays[spec.name]).T) for spec in self.inputs}

    def codes(self, categorical: NDArray[Any]) -> NDArray[np.int64]:
        """Return the input `categorical` as positions in its columns' categories, [rows, columns].

        What is missing is MISSING_CODE; a category that the column doesn't have is as many as it has.
        """
        codes = np.empty(categorical.shape, np.int64)
        for position, column in enumerate(self.categorical_columns):
            known = {category: code for code, category in enumerate(column.categories)} | {MISSING: MISSING_CODE}
            unseen = len(column.categories)
            values = categorical[:, position].tolist()  # Python's strings hash faster than NumPy's sort
            codes[:, position] = np.fromiter((known.get(value, unseen) for value in values), np.int64, len(values))
        return codes

    def categories(self, codes: NDArray[np.int64]) -> NDArray[np.str_]:
        """Return positions in the columns' categories as strings, [rows, columns]: what `codes` undoes.

        What is as many as a column has becomes a category that none of them is.
        """
        longest = max((len(name) for column in self.columns for name in column.categories), default=0)
        unseen = "?" * (longest + 1)
        names = [np.array([*column.categories, unseen, MISSING]) for column in self.categorical_columns]
        return np.column_stack([known[column] for known, column in zip(names, codes.T, strict=True)])

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return `arrays` in the model's dtypes and order; a single one may have an empty name.

        Numbers of any dtype are taken where the model has FLOAT32; what is past its range becomes infinite, which a
        row's status then says. Strings may be of any of NumPy's types, or objects, where None and NaN are missing.
        Raises InvalidInputError, naming the input, where they don't fit.
        """
        if len(self.inputs) == 1 and set(arrays) == {""}:
            arrays = {self.inputs[0].name: arrays[""]}
        if arrays.keys() != {spec.name for spec in self.inputs}:
            given = ", ".join(sorted(name or "an array without a name" for name in arrays))
            expected = ", ".join(spec.name for spec in self.inputs)
            raise InvalidInputError(f"inputs: {given or 'none'}; the model takes {expected}")
        checked = {spec.name: _fit(arrays[spec.name], spec) for spec in self.inputs}
        if len({len(array) for array in checked.values()}) > 1:
            rows = {name: len(array) for name, array in checked.items()}
            raise InvalidInputError(f"inputs: {rows} rows; expected as many in each")
        return checked


def _inputs_of(columns: Sequence[Column]) -> tuple[TensorSpec, ...]:
    """Return the input tensors that a table's columns make."""
    strings = sum(column.kind == "categorical" for column in columns)
    numbers = len(columns) - strings
    specs = (TensorSpec("numeric", "FLOAT32", (-1, numbers)), TensorSpec("categorical", "STRING", (-1, strings)))
    return tuple(spec for spec in specs if spec.shape[1])


def array_of(rows: Values) -> NDArray[Any]:
    """Return `rows` as an array, in single precision at most; raises InvalidInputError if they are none."""
    try:
        array = np.asarray(_unmasked(rows))
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"rows: {error}; expected an array of numbers") from None
    if array.dtype.kind == "U" and not isinstance(rows, np.ndarray):
        array = np.asarray(rows, dtype=object)  # or else NumPy writes a NaN beside strings as "nan"
    # No model takes more than single precision, nor has the wire words for every width.
    return array if array.dtype.kind not in "fiu" or array.dtype in _AS_THEY_ARE else _single(array)


def _unmasked(values: Values) -> Values:
    """Return `values` with NaN, which means missing, for what a masked array hides."""
    if not isinstance(values, np.ma.MaskedArray):
        return values
    if values.dtype.kind != "f":
        raise InvalidInputError(f"rows: a masked array of {values.dtype}; expected floats, where masked is missing")
    filled: NDArray[Any] = values.filled(np.nan)
    return filled


def _single(array: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _fit(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    if array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:]:
        if array.ndim == len(spec.shape) == 2:
            raise InvalidInputError(f"{spec.name}: {array.shape[1]} columns, the model takes {spec.shape[1]}")
        raise InvalidInputError(f"{spec.name}: shape {list(array.shape)}; the model takes {_describe(spec)}")
    if spec.dtype == "STRING":
        return _strings(array, spec)
    dtype = _NUMPY[spec.dtype]
    if array.dtype == dtype:
        return array
    if spec.dtype == "UINT8" or array.dtype.kind not in "fiub":
        name = "strings" if array.dtype.kind in "UOT" else array.dtype.name
        raise InvalidInputError(f"{spec.name}: {name}; the model takes {_describe(spec)}")
    return _single(array)


def _strings(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    if array.dtype.kind == "U":
        return array
    # An empty list has no strings to tell its dtype by.
    if array.dtype.kind not in "OT" and array.size:
        raise InvalidInputError(f"{spec.name}: {array.dtype.name}; the model takes {_describe(spec)}")
    objects = array.astype(object)
    for index, value in enumerate(objects.flat):
        if not isinstance(value, str):
            if not _is_missing(value):
                raise InvalidInputError(f"{spec.name}: holds {value!r}; the model takes {_describe(spec)}")
            objects.flat[index] = MISSING
    return objects


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype} of shape {['rows', *spec.shape[1:]]}".replace("'", "")


def _columns_of(table: object, signature: Signature) -> Mapping[str, Values]:
    """Return the model's columns of a dataframe, as far as it has them."""
    # Weighs little, but who sends arrays needn't wait for it.
    import narwhals as nw

    frame = nw.from_native(_eager(table), eager_only=True)
    columns: dict[str, Values] = {}
    for column in signature.columns:
        if column.name in frame.columns:
            series = frame[column.name]
            dictionary = frame.implementation.is_pyarrow() and series.dtype == nw.Categorical
            # On the way to NumPy, whole numbers beside nulls would be rounded, and Arrow's dictionaries lose nulls.
            if column.kind == "categorical" and (series.dtype.is_integer() or dictionary):
                series = series.cast(nw.String)
            columns[column.name] = series.to_numpy()
    return columns


def _eager(table: object) -> Any:
    """Return `table`, or a pyarrow table made of it where it is of no library that narwhals knows."""
    import narwhals as nw

    if nw.from_native(table, eager_only=True, pass_through=True) is not table:
        return table
    if not isinstance(table, DataFrame | ArrowTable):
        kind = type(table).__name__
        raise InvalidInputError(f"rows: a {kind}; expected an array, a mapping of columns or a dataframe")
    try:
        import pyarrow as pa
        import pyarrow.interchange
    except ModuleNotFoundError:
        kind = type(table).__name__
        raise InvalidInputError(f"rows: a {kind} takes pyarrow to read: pip install pyarrow") from None
    return pa.table(table) if isinstance(table, ArrowTable) else pa.interchange.from_dataframe(table)


def _number_column(name: str, values: Values) -> NDArray[np.float32]:
    """Return a column as numbers, with NaN for None."""
    array = np.asarray(_unmasked(values))
    if array.ndim != 1:
        raise InvalidInputError(f"rows: column {name!r} has shape {list(array.shape)}; expected one value a row")
    if array.dtype.kind == "O" and not any(isinstance(value, str) for value in array):
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # said below, with an example
            array = array.astype(np.float64)
    if array.dtype.kind not in "fiub":
        example = next((value for value in array.tolist() if not isinstance(value, float | int | None)), None)
        raise InvalidInputError(f"rows: column {name!r} holds {example!r}; the model takes numbers")
    return _single(array)


def as_categories(name: str, values: Values) -> NDArray[Any]:
    """Return a column as strings, empty for None and NaN; whole numbers and truths become their text."""
    array: NDArray[Any]
    if isinstance(values, np.ma.MaskedArray):
        array = values.data.astype(object)
        array[np.ma.getmaskarray(values)] = None
    else:
        array = values if isinstance(values, np.ndarray) else np.asarray(values, dtype=object)
    if array.ndim != 1:
        raise InvalidInputError(f"rows: column {name!r} has shape {list(array.shape)}; expected one value a row")
    if array.dtype.kind == "U":
        return array
    strings = np.empty(len(array), object)
    # datetime64 comes as integers from `tolist`.
    objects = list(array) if array.dtype.kind in "mM" else array.tolist()
    strings[:] = [value if type(value) is str else _category(name, value) for value in objects]
    return strings


def _category(name: str, value: object) -> str:
    if _is_missing(value):
        return MISSING
    if isinstance(value, str | bool | int | np.bool_ | np.integer):
        return str(value)
    # pandas makes floats of whole numbers where some are missing.
    if isinstance(value, float | np.floating) and value.is_integer():
        return str(int(value))
    raise InvalidInputError(f"rows: column {name!r} holds {value!r}; the model takes categories: text or whole numbers")


def _is_missing(value: object) -> bool:
    """Tell whether a value is None, NaN, or pandas' NA or NaT."""
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _and_more(missing: list[str]) -> str:
    return f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
