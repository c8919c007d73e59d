"""What a model takes: its input tensors and, for a table, its columns."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vaeserve.errors import InvalidInputError

Kind = Literal["numeric"]
DType = Literal["FLOAT32", "UINT8"]

_AS_THEY_ARE = (np.float32, np.float16, np.int64, np.int32, np.uint8)
_NUMPY: dict[DType, np.dtype[Any]] = {"FLOAT32": np.dtype(np.float32), "UINT8": np.dtype(np.uint8)}


@runtime_checkable
class DataFrame(Protocol):
    """A table with the dataframe interchange protocol."""

    def __dataframe__(self) -> Any: ...


@runtime_checkable
class ArrowTable(Protocol):
    """A table with the Arrow PyCapsule interface, which Polars has in place of the interchange protocol."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Rows = ArrayLike | Mapping[str, ArrayLike] | DataFrame | ArrowTable


@dataclass(frozen=True)
class TensorSpec:
    """An input tensor: its name, dtype and shape, -1 for the rows."""

    name: str
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class Signature:
    """A model's inputs, and a table's columns in the order of the tensors' columns."""

    inputs: tuple[TensorSpec, ...]
    columns: tuple[Column, ...] = ()

    def __post_init__(self) -> None:
        shapes = [spec.shape for spec in self.inputs]
        if self.columns:
            agrees = shapes == [(-1, len(self.columns))]
        else:
            agrees = [len(shape) for shape in shapes] == [4] and min(shapes[0][1:]) > 0
        if not agrees:
            raise ValueError(
                f"inputs of shape {shapes} and {len(self.columns)} columns; expected one that has them all"
            )

    @classmethod
    def table(cls, names: list[str]) -> Self:
        """Return the signature of a table of numbers."""
        return cls(
            (TensorSpec("numeric", "FLOAT32", (-1, len(names))),),
            tuple(Column(name, "numeric") for name in names),
        )

    @classmethod
    def image(cls, shape: tuple[int, int, int]) -> Self:
        """Return the signature of images of `shape`: channels, height, width."""
        return cls((TensorSpec("image", "UINT8", (-1, *shape)),))

    @property
    def features(self) -> tuple[str, ...]:
        """The features' names: the columns', or `pixel[channel, y, x]`."""
        if self.columns:
            return tuple(column.name for column in self.columns)
        _, *shape = self.inputs[0].shape
        return tuple(f"pixel{list(index)}" for index in np.ndindex(*shape))

    @property
    def row_bytes(self) -> int:
        """How many bytes a row has as input tensors."""
        return sum(math.prod(spec.shape[1:]) * _NUMPY[spec.dtype].itemsize for spec in self.inputs)

    def inputs_from(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return `rows` as the input tensors.

        Rows are an array of the one input's shape, or named columns: a mapping of arrays, or a dataframe. Columns are
        matched by name, in any order; others than the model's are left out.

        Raises InvalidInputError, naming the column, where they don't fit.
        """
        names = [spec.name for spec in self.inputs]
        if isinstance(rows, Mapping) and set(rows) == set(names):
            return self.check({name: array_of(rows[name]) for name in names})
        if isinstance(rows, Mapping):
            return self.check({"numeric": self._from_columns(rows)})
        if isinstance(rows, np.ndarray | list | tuple):
            return self.check({"": array_of(rows)})
        return self.check({"numeric": self._from_columns(_columns_of(rows, self))})

    def _from_columns(self, columns: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
        if not self.columns:
            raise InvalidInputError(f"rows: named columns; the model takes {_describe(self.inputs[0])}")
        missing = [column.name for column in self.columns if column.name not in columns]
        if missing:
            raise InvalidInputError(
                f"rows: column {missing[0]!r} is missing{_and_more(missing)}; the model takes "
                f"{', '.join(column.name for column in self.columns)}"
            )
        arrays = [_number_column(column.name, columns[column.name]) for column in self.columns]
        lengths = {len(array) for array in arrays}
        if len(lengths) > 1:
            raise InvalidInputError(f"rows: columns of {sorted(lengths)} rows; expected all of one length")
        return np.column_stack(arrays)

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return `arrays` in the model's dtypes and order; a single one may have an empty name.

        Numbers of any dtype are taken where the model has FLOAT32; what is past its range becomes infinite, which a
        row's status then says. Raises InvalidInputError, naming the input, where they don't fit.
        """
        if len(self.inputs) == 1 and set(arrays) == {""}:
            arrays = {self.inputs[0].name: arrays[""]}
        expected = [spec.name for spec in self.inputs]
        if set(arrays) != set(expected):
            raise InvalidInputError(
                f"inputs: {', '.join(sorted(arrays)) or 'none'}; the model takes {', '.join(expected)}"
            )
        checked = {spec.name: _fit(arrays[spec.name], spec) for spec in self.inputs}
        rows = {name: len(array) for name, array in checked.items()}
        if len(set(rows.values())) > 1:
            raise InvalidInputError(f"inputs: {rows} rows; expected as many in each")
        return checked


def array_of(rows: ArrayLike) -> NDArray[Any]:
    """Return `rows` as an array, in single precision at most; raises InvalidInputError if they are none."""
    try:
        array = np.asarray(_unmasked(rows))
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"rows: {error}; expected an array of numbers") from None
    # No model takes more than single precision, nor has the wire words for every width.
    return array if array.dtype.kind not in "fiu" or array.dtype in _AS_THEY_ARE else _single(array)


def _unmasked(values: ArrayLike) -> ArrayLike:
    """Return `values` with NaN, which means missing, for what a masked array hides."""
    if not isinstance(values, np.ma.MaskedArray):
        return values
    if values.dtype.kind != "f":
        raise InvalidInputError(f"rows: a masked array of {values.dtype}; expected floats, where masked is missing")
    filled: NDArray[Any] = values.filled(np.nan)
    return filled


def _single(array: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _fit(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    if array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:]:
        if array.ndim == len(spec.shape) == 2:
            raise InvalidInputError(f"{spec.name}: {array.shape[1]} columns, the model takes {spec.shape[1]}")
        raise InvalidInputError(f"{spec.name}: shape {list(array.shape)}; the model takes {_describe(spec)}")
    dtype = _NUMPY[spec.dtype]
    if array.dtype == dtype:
        return array
    if spec.dtype == "UINT8" or array.dtype.kind not in "fiub":
        name = "strings" if array.dtype.kind in "UOT" else array.dtype.name
        raise InvalidInputError(f"{spec.name}: {name}; the model takes {_describe(spec)}")
    return _single(array)


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype} of shape {['rows', *spec.shape[1:]]}".replace("'", "")


def _columns_of(table: object, signature: Signature) -> Mapping[str, ArrayLike]:
    """Return the model's columns of a dataframe, as far as it has them."""
    # Weighs little, but who sends arrays needn't wait for it.
    import narwhals as nw

    frame = nw.from_native(_eager(table), eager_only=True)
    wanted = [column.name for column in signature.columns if column.name in frame.columns]
    return {name: frame[name].to_numpy() for name in wanted}


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


def _number_column(name: str, values: ArrayLike) -> NDArray[np.float32]:
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


def _and_more(missing: list[str]) -> str:
    return f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
