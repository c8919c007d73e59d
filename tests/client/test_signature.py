"""Rows of any form as a model's inputs."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from vaeserve.errors import InvalidInputError
from vaeserve.signature import Column, Signature, TensorSpec

TABLE = Signature.numbers(["age", "height"])
IMAGES = Signature.image((1, 2, 3))
MIXED = Signature.table(
    [
        Column("age", "numeric", nullable=True),
        Column("city", "categorical", ("Oslo", "Rome")),
        Column("member", "binary"),
        Column("code", "categorical", ("1", "2"), nullable=True),
    ]
)
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
    assert IMAGES.features is IMAGES.features  # made once, not once a request


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


def test_a_table_of_all_kinds_has_two_inputs() -> None:
    """Numeric and binary columns make one tensor, categories another, each in the columns' order."""
    assert MIXED.inputs == (TensorSpec("numeric", "FLOAT32", (-1, 2)), TensorSpec("categorical", "STRING", (-1, 2)))
    assert MIXED.features == ("age", "city", "member", "code")
    assert [column.name for column in MIXED.numeric_columns] == ["age", "member"]
    assert [column.name for column in MIXED.categorical_columns] == ["city", "code"]
    assert MIXED.row_bytes == 2 * 4 + 2 * 32
    assert Signature.table([Column("c", "categorical", ("x",))]).inputs == (
        TensorSpec("categorical", "STRING", (-1, 1)),
    )


ROWS: dict[str, Any] = {"age": [30, None], "city": ["Rome", None], "member": [True, False], "code": [2, None]}


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        pd.DataFrame(ROWS),
        pd.DataFrame(ROWS).convert_dtypes(),
        pd.DataFrame(ROWS | {"city": pd.Categorical(["Rome", None]), "code": pd.Categorical([2, None])}),
        pl.DataFrame(ROWS),
        pl.DataFrame(ROWS, schema_overrides={"city": pl.Categorical}),
        pl.DataFrame(ROWS, schema_overrides={"city": pl.Enum(["Rome"])}),
        pa.table(ROWS),
        pa.table(ROWS | {"city": pa.array(["Rome", None]).dictionary_encode()}),
        pa.table(ROWS | {"code": pa.array([2, None]).dictionary_encode()}),
        Interchange(pa.table(ROWS)),
        {name: np.array(values, dtype=object) for name, values in ROWS.items()},
        ROWS | {"code": np.ma.array([2, 1], mask=[False, True]), "city": np.array(["Rome", ""])},
        ROWS | {"city": ["Rome", float("nan")], "code": [2.0, float("nan")]},
    ],
)
def test_categories_come_as_any_library_has_them(rows: Any) -> None:
    """Text, dictionaries and whole numbers are categories by their text; None, NaN and NA are missing."""
    inputs = MIXED.inputs_from(rows)
    np.testing.assert_array_equal(inputs["numeric"], np.array([[30, 1], [np.nan, 0]], np.float32))
    assert inputs["categorical"].tolist() == [["Rome", "2"], ["", ""]]


def test_whole_numbers_past_double_precision_are_categories_as_they_are() -> None:
    """A code is not rounded on its way to text, also beside a null."""
    large = 2**53 + 1
    for frame in (pa.table, pl.DataFrame, dict):
        columns: dict[str, Any] = {"age": [1, 1], "city": ["Rome"] * 2, "member": [0, 1], "code": [large, None]}
        assert MIXED.inputs_from(frame(columns))["categorical"][0, 1] == str(large)


def test_unknown_categories_are_passed_on() -> None:
    """A category that the model doesn't know goes through as it is, for the row's status to tell."""
    rows = ROWS | {"city": ["Paris", "Rome"], "code": [True, "x"]}
    categorical = MIXED.inputs_from(rows)["categorical"]
    assert categorical.tolist() == [["Paris", "True"], ["Rome", "x"]]
    assert MIXED.codes(categorical).tolist() == [[2, 2], [1, 2]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS | {"code": [0.5, 1]}, "column 'code' holds 0.5; the model takes categories: text or whole numbers"),
        (ROWS | {"code": [float("inf"), 1]}, "column 'code' holds inf"),
        (ROWS | {"code": [b"x", b"y"]}, "column 'code' holds b'x'"),
        (ROWS | {"code": np.array(["2020-01-02"] * 2, "M8[D]")}, "column 'code' holds .*2020-01-02"),
        (ROWS | {"code": [["x"], ["y"]]}, r"column 'code' has shape \[2, 1\]"),
        (ROWS | {"city": ["Rome"]}, r"columns of \[1, 2\] rows"),
        ({"age": [1], "city": ["Rome"]}, "column 'member' is missing .and 1 more.; the model takes age, city, member"),
        (np.zeros((1, 2)), "inputs: an array without a name; the model takes numeric, categorical"),
    ],
)
def test_what_is_no_category_is_refused(rows: Any, message: str) -> None:
    """Fractions, bytes and dates are no categories, and two inputs don't fit in one array."""
    with pytest.raises(InvalidInputError, match=message):
        MIXED.inputs_from(rows)


@pytest.mark.parametrize("dtype", ["U", "O", np.dtypes.StringDType()])
def test_strings_of_every_type_are_taken(dtype: Any) -> None:
    """Tensors of strings may be of any of NumPy's types; objects may be None, which is missing, and no numbers."""
    numeric = np.zeros((1, 2), np.float32)
    checked = MIXED.check({"numeric": numeric, "categorical": np.array([["Rome", "1"]], dtype=dtype)})
    assert checked["categorical"].tolist() == [["Rome", "1"]]
    assert checked["categorical"].dtype.kind in "UO"
    one = Signature.table([Column("c", "categorical", ("x",))])
    assert one.inputs_from([["x"], [None], [float("nan")]])["categorical"].tolist() == [["x"], [""], [""]]
    assert one.inputs_from([["x"], [float("nan")]])["categorical"].tolist() == [["x"], [""]]
    with pytest.raises(InvalidInputError, match="categorical: holds 7; the model takes STRING of shape .rows, 2."):
        MIXED.check({"numeric": numeric, "categorical": np.array([["Rome", 7]], dtype=object)})
    with pytest.raises(InvalidInputError, match="categorical: float32; the model takes STRING"):
        MIXED.check({"numeric": numeric, "categorical": numeric})
    assert one.check({"": np.zeros((0, 1))})["categorical"].shape == (0, 1)


CATEGORIES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1, unique=True
)


@given(CATEGORIES, st.data())
def test_codes_lead_back_to_the_categories(categories: list[str], data: st.DataObject) -> None:
    """A known category's code is its position, a missing one's -1, an unseen one's as many as there are."""
    signature = Signature.table([Column("n", "numeric"), Column("c", "categorical", tuple(categories))])
    values = data.draw(st.lists(st.sampled_from([*categories, ""]) | st.text(st.characters(codec="utf-8"))))
    strings = np.array(values, dtype=object).reshape(-1, 1)
    codes = signature.codes(strings)
    assert codes.dtype == np.int64
    for value, code in zip(values, codes[:, 0].tolist(), strict=True):
        if value in categories:
            assert categories[code] == value
        else:
            assert code == (-1 if value == "" else len(categories))


def test_fixed_widths_and_objects_have_the_same_codes() -> None:
    """Arrays of fixed width, as the training keeps them, are coded as objects are."""
    strings = np.array([["Rome", "2"], ["", "x"]])
    assert (MIXED.codes(strings) == MIXED.codes(strings.astype(object))).all()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"name": "c", "kind": "categorical"}, "categorical with 0 categories; expected some for categorical"),
        ({"name": "c", "kind": "numeric", "categories": ["x"]}, "numeric with 1 categories"),
        ({"name": "c", "kind": "categorical", "categories": ["x", "x"]}, "expected each once, and none empty"),
        ({"name": "c", "kind": "categorical", "categories": ["x", ""]}, "expected each once, and none empty"),
        ({"name": "c", "kind": "ordinal"}, "Input should be 'numeric', 'binary' or 'categorical'"),
    ],
)
def test_a_column_must_agree_with_itself(column: dict[str, Any], message: str) -> None:
    """Categories are for categorical columns, each once, and a kind is one of those that there are."""
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Column).validate_python(column)


def test_signatures_go_through_json() -> None:
    """A signature comes back from JSON as it was; columns of a name and a kind alone, as older ones are, do too."""
    adapter = TypeAdapter(Signature)
    assert adapter.validate_json(adapter.dump_json(MIXED)) == MIXED
    old = b'{"inputs":[{"name":"numeric","dtype":"FLOAT32","shape":[-1,1]}],"columns":[{"name":"a","kind":"numeric"}]}'
    assert adapter.validate_json(old) == Signature.numbers(["a"])
