"""Rows of any form as a model's inputs."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from vaeserve.errors import InvalidInputError
from vaeserve.signature import Signature, TensorSpec

TABLE = Signature.table(["age", "height"])
IMAGES = Signature.image((1, 2, 3))
COLUMNS = {"height": [1.5, 2.5], "city": ["Rome", "Oslo"], "age": [30, 40]}


class Interchange:
    """A dataframe of a library that nobody knows, with the interchange protocol alone."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __dataframe__(self, **options: Any) -> Any:
        """Return the protocol's object."""
        return self._table.__dataframe__(**options)


@pytest.mark.parametrize(
    "rows",
    [
        {"height": [1.5, 2.5], "age": [30, 40]},
        pd.DataFrame(COLUMNS),
        pl.DataFrame(COLUMNS),
        pa.table(COLUMNS),
        Interchange(pa.table(COLUMNS)),
    ],
    ids=["mapping", "pandas", "polars", "pyarrow", "interchange"],
)
def test_columns_are_matched_by_name(rows: Any) -> None:
    """Named columns of any library go where the model has them; others are left out."""
    numeric = TABLE.inputs_from(rows)["numeric"]
    assert numeric.dtype == np.float32
    assert numeric.tolist() == [[30, 1.5], [40, 2.5]]


@pytest.mark.parametrize(
    "rows",
    [
        pd.DataFrame({"age": pd.array([1, None], dtype="Int64"), "height": [True, False]}),
        pl.DataFrame({"age": [1, None], "height": [True, False]}),
        pa.table({"age": [1, None], "height": [True, False]}),
        {"age": [1, None], "height": [True, False]},
    ],
    ids=["pandas", "polars", "pyarrow", "mapping"],
)
def test_nulls_are_missing_and_booleans_are_numbers(rows: Any) -> None:
    """A null becomes NaN, which means missing; true is 1."""
    numeric = TABLE.inputs_from(rows)["numeric"]
    assert np.isnan(numeric[1, 0])
    assert numeric[:, 1].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((4, 3)), "numeric: 3 columns, the model takes 2"),
        (np.zeros(2), r"numeric: shape \[2\]; the model takes FLOAT32 of shape \[rows, 2\]"),
        (np.array([["a", "b"]]), "numeric: strings; the model takes FLOAT32"),
        ([[1, 2], [3]], "rows: .* expected an array of numbers"),
        ({"age": [1]}, "column 'height' is missing; the model takes age, height"),
        ({"age": [1], "height": ["tall"]}, "column 'height' holds 'tall'; the model takes numbers"),
        (pd.DataFrame({"age": [1], "height": ["tall"]}), "column 'height' holds 'tall'"),
        ({"age": [1, 2], "height": [1]}, r"columns of \[1, 2\] rows"),
        ({"age": [[1]], "height": [1]}, r"column 'age' has shape \[1, 1\]"),
        ("rows.csv", "a str; expected an array, a mapping of columns or a dataframe"),
        (42, "a int; expected an array, a mapping of columns or a dataframe"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: Any, message: str) -> None:
    """Rows of another form are refused with the thing, the value and what was expected."""
    with pytest.raises(InvalidInputError, match=message):
        TABLE.inputs_from(rows)


def test_images_are_arrays_of_bytes() -> None:
    """Images go through as they are; other shapes, dtypes and columns are refused."""
    images = np.zeros((4, 1, 2, 3), np.uint8)
    assert IMAGES.inputs_from(images)["image"] is images
    with pytest.raises(InvalidInputError, match=r"image: float32; the model takes UINT8 of shape \[rows, 1, 2, 3\]"):
        IMAGES.inputs_from(images.astype(np.float32))
    with pytest.raises(InvalidInputError, match=r"image: shape \[4, 2, 3\]"):
        IMAGES.inputs_from(images[:, 0])
    with pytest.raises(InvalidInputError, match="named columns; the model takes UINT8"):
        IMAGES.inputs_from({"a": [1]})


def test_inputs_are_taken_by_name() -> None:
    """A single input may go without its name, but no other name will do."""
    rows = np.zeros((1, 2), np.float32)
    assert TABLE.check({"": rows})["numeric"] is rows
    with pytest.raises(InvalidInputError, match="inputs: image; the model takes numeric"):
        TABLE.check({"image": rows})
    with pytest.raises(InvalidInputError, match="inputs: none; the model takes numeric"):
        TABLE.check({})


def test_what_single_precision_cannot_hold_becomes_infinite() -> None:
    """A number past the range of float32 becomes infinite, for the row's status to tell; others stay."""
    numeric = TABLE.check({"numeric": np.array([[1e300, 1.0]])})["numeric"]
    assert numeric.tolist() == [[np.inf, 1.0]]


def test_features_have_names() -> None:
    """A table's features are its columns, an image's its pixels."""
    assert TABLE.features == ("age", "height")
    assert IMAGES.features[0] == "pixel[0, 0, 0]"
    assert IMAGES.features[-1] == "pixel[0, 1, 2]"


def test_masked_values_are_missing() -> None:
    """What a masked array hides is missing, not the value beneath; integers can't say so and are refused."""
    masked = np.ma.array([[1.0, 2.0]], mask=[[True, False]])
    assert np.isnan(TABLE.inputs_from(masked)["numeric"]).tolist() == [[True, False]]
    columns = {"age": np.ma.array([1.0], mask=[True]), "height": np.array([2.0])}
    assert np.isnan(TABLE.inputs_from(columns)["numeric"]).tolist() == [[True, False]]
    with pytest.raises(InvalidInputError, match="a masked array of int64; expected floats"):
        TABLE.inputs_from(np.ma.array([[1, 2]], mask=[[True, False]]))


@pytest.mark.parametrize("dtype", ["int8", "uint16", "uint32", "uint64", "int64", "float16", "longdouble", "bool"])
def test_numbers_of_every_width_are_taken(dtype: str) -> None:
    """Any width of number is taken, also such as the wire has no word for."""
    assert TABLE.inputs_from(np.ones((1, 2), dtype))["numeric"].tolist() == [[1, 1]]


def test_a_signature_must_agree_with_itself() -> None:
    """Columns and tensors of other widths, and images without a size, are no signature."""
    for inputs, columns in (
        ((), ()),
        (TABLE.inputs, TABLE.columns[:1]),
        (TABLE.inputs, ()),
        ((TensorSpec("image", "UINT8", (-1, 1, 0, 3)),), ()),
        (IMAGES.inputs * 2, ()),
    ):
        with pytest.raises(ValueError, match="expected one that has them all"):
            Signature(inputs, columns)
