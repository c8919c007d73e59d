"""What columns are, by their looks or as stated."""

import datetime
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vaeserve.errors import DataError
from vaeserve.signature import Kind
from vaeserve_training import kinds
from vaeserve_training.kinds import ColumnReport, Inference, Inferred

ROWS = 40


def infer(
    columns: Mapping[str, Any], *, stated: Mapping[str, Kind] | None = None, anomalous: int = 0, batch: int = 7
) -> Inferred:
    """Infer the columns, a small batch at a time; the last `anomalous` rows aren't normal."""
    table = pa.table(dict(columns))
    inference = Inference("t", table.schema, names=table.schema.names, kinds=stated or {})
    normal = np.arange(table.num_rows) < table.num_rows - anomalous
    start = 0
    for some in table.to_batches(max_chunksize=batch):
        inference.update(some, normal[start : start + some.num_rows])
        start += some.num_rows
    return inference.finish()


@pytest.mark.parametrize(
    ("values", "kind", "nullable"),
    [
        ([1.5, 2.5] * 20, "numeric", False),
        ([1, 2] * 20, "numeric", False),
        ([0, 1] * 20, "binary", False),
        ([0.0, 1.0, None, float("nan")] * 10, "binary", True),
        ([True, False] * 20, "binary", False),
        ([True, None] * 20, "binary", True),
        ([Decimal("1.5"), Decimal("2.5")] * 20, "numeric", False),
        ([1.5, None] * 20, "numeric", True),
        (["x", "y"] * 20, "categorical", False),
        (["x", "y", ""] * 13, "categorical", True),
        (["x", "y", None] * 13, "categorical", True),
        (pa.array(["x", "y"] * 20).dictionary_encode(), "categorical", False),
        (pa.array([1, 2] * 20).dictionary_encode(), "categorical", False),
        (pa.array(["x", "y"] * 20, pa.large_string()), "categorical", False),
        (np.array([1, 2] * 20, np.uint64), "numeric", False),
        (np.array([1, 2] * 20, np.float16), "numeric", False),
    ],
)
def test_columns_are_known_by_their_values(values: Any, kind: str, nullable: bool) -> None:
    """Numbers, truths and repeated strings are learned from; what some rows miss is nullable."""
    (column,) = infer({"a": values}).columns
    assert (column.kind, column.nullable) == (kind, nullable)


def test_categories_are_sorted_and_of_normal_rows_alone() -> None:
    """What only anomalous rows hold is no category, nor makes a column nullable or more than binary."""
    columns = {"c": ["b", "a"] * 20 + ["z", None], "n": [0, 1] * 20 + [7, None]}
    category, number = infer(columns, anomalous=2).columns
    assert category.categories == ("a", "b")
    assert (number.kind, category.nullable, number.nullable) == ("binary", False, False)


def test_a_column_is_reported() -> None:
    """A report says how many rows, missing and different values there are, with an example."""
    inferred = infer({"c": ["b", "a", None, ""] * 10, "n": [5, 6, 5, None] * 10, "k": [3] * 40, "s": ["same"] * 40})
    assert inferred.reports == (
        ColumnReport("c", "categorical", 40, 20, 2, "'b'"),
        ColumnReport("n", "numeric", 40, 10, 2, "5"),
        ColumnReport("k", "constant", 40, 0, 1, "3"),
        ColumnReport("s", "constant", 40, 0, 1, "'same'"),
    )


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("d", [datetime.date(2020, 1, 2)] * ROWS, "dates, such as '2020-01-02'"),
        ("d", [datetime.datetime(2020, 1, 2)] * ROWS, "dates"),
        ("d", [datetime.timedelta(1)] * ROWS, "dates"),
        ("d", ["2020-01-02", "2020/01/03"] * 20, "dates, such as '2020-01-02'"),
        ("d", ["2020-01-02T10:00:00Z", "2020-01-03 11:00:00.5+02:00"] * 20, "dates"),
        ("t", [f"note {i}" for i in range(ROWS)], "free text, such as 'note 0'"),
        ("t", [f"note {i % 21}" for i in range(ROWS)], "free text"),
        ("t", ["x" * 1001] * ROWS, "free text"),
        ("id", [7, 3, 9], "an id, such as 7, different in each row"),
        ("customer_id", [f"u{i}" for i in range(ROWS)], "an id"),
        ("customerId", [7.0, 3.0, 9.0], "an id"),
        ("row", list(range(5, 5 + ROWS)), "an id"),
        ("e", [None] * ROWS, "missing in all 40 rows"),
        ("e", ["", None] * 20, "missing in all 40 rows"),
        ("e", [float("nan")] * ROWS, "missing in all 40 rows"),
        ("l", [[1]] * ROWS, "neither numbers nor text, such as .1."),
        ("b", [b"x"] * ROWS, "neither numbers nor text, such as b'x'"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(name: str, values: list[Any], why: str) -> None:
    """Dates, text, ids, columns that are all missing and lists are refused by name, with how to go on."""
    with pytest.raises(DataError, match=f"t: column '{name}': {why}.*; expected .*, or else --drop '{name}'"):
        infer({name: values})


def test_all_that_is_refused_is_listed_at_once() -> None:
    """One error lists every column to drop, and how to state what the first is."""
    with pytest.raises(DataError) as refusal:
        infer({"a": [1.5, 2.5] * 20, "id": range(ROWS), "note": [f"n{i}" for i in range(ROWS)]})
    assert str(refusal.value) == (
        "t: column 'id' (and 1 more): an id, such as 0, different in each row; expected numbers or categories, or else "
        "--drop 'id' --drop 'note', or --kind 'id'=numeric"
    )


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("paid", [7, 3, 9] * 2),
        ("valid", [7, 3, 9]),
        ("customer_id", [7, 3, 7]),
        ("price_index", [7.5, 3.5, 9.5]),
        ("row", [*range(30), 31]),
        ("few", list(range(19))),
        ("weekday", list(range(7)) * 6),
        ("down", list(range(40, 0, -1))),
        ("gap", [*range(20), None, *range(20, 40)]),
    ],
)
def test_numbers_that_only_look_like_ids_are_learned_from(name: str, values: list[Any]) -> None:
    """Names that merely end in the letters, repeated ids, fractions and gaps make no id."""
    assert infer({name: values}).columns[0].kind == "numeric"


def test_rows_are_counted_across_batches_and_labels() -> None:
    """A column that counts the rows is known as such whatever the batches, and whichever rows are set aside."""
    with pytest.raises(DataError, match="'n': an id"):
        infer({"n": range(ROWS)}, batch=1, anomalous=5)


@pytest.mark.parametrize(
    ("name", "values", "kind", "categories"),
    [
        ("id", range(ROWS), "numeric", ()),
        ("code", [2, 1] * 20, "categorical", ("1", "2")),
        ("code", [2**53 + 1, None] * 20, "categorical", (str(2**53 + 1),)),
        ("code", [2.0, None] * 20, "categorical", ("2",)),
        ("code", [True, False] * 20, "categorical", ("False", "True")),
        ("day", ["2020-01-02", "2020-01-03"] * 20, "categorical", ("2020-01-02", "2020-01-03")),
        ("many", [f"{i % 30:02}" for i in range(ROWS)], "categorical", tuple(f"{i:02}" for i in range(30))),
        ("bit", [0, 1] * 20, "numeric", ()),
        ("bit", [0, 1] * 20, "binary", ()),
    ],
)
def test_a_stated_kind_overrules_looks(name: str, values: Any, kind: Kind, categories: tuple[str, ...]) -> None:
    """What the user says a column is, it is; numbers stated to be categories are those of their text."""
    (column,) = infer({name: values}, stated={name: kind}).columns
    assert (column.kind, column.categories) == (kind, categories)


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (["x", "y"] * 20, "numeric", "column 'a' holds 'x'; --kind 'a'=numeric takes numbers"),
        (["x", "y"] * 20, "binary", "column 'a' holds 'x'; --kind 'a'=binary takes 0 and 1"),
        ([0, 1, 2], "binary", "column 'a' holds 2; --kind 'a'=binary takes 0 and 1 alone"),
        ([0, 0.5], "binary", "column 'a' holds 0.5"),
        ([0.5, 1], "categorical", "column 'a' holds 0.5; the model takes categories: text or whole numbers"),
        ([float("inf"), 1], "categorical", "column 'a' holds inf"),
        (range(ROWS), "categorical", "'a' has as many categories as rows, 40"),
        (["x" * 1001] * 3, "categorical", "'a' holds a text of 1001 characters; .* takes 1000 at most"),
        ([datetime.date(2020, 1, 2)] * 3, "numeric", "'a' holds '2020-01-02'; --kind 'a'=numeric takes numbers"),
        ([datetime.date(2020, 1, 2)] * 3, "categorical", "'a' holds .*2020-01-02.*; the model takes categories"),
        ([[1]] * 3, "categorical", "column 'a' holds .1.; --kind 'a'=categorical takes numbers, or text"),
        ([None] * 3, "categorical", "column 'a': missing in all 3 rows"),
    ],
)
def test_a_stated_kind_that_cannot_be_is_refused(values: Any, kind: Kind, message: str) -> None:
    """Text isn't numbers, 2 isn't binary, and rows that all differ are no categories, whatever is stated."""
    with pytest.raises(DataError, match=message):
        infer({"a": values}, stated={"a": kind})


def test_text_with_a_nul_is_refused() -> None:
    """NumPy's strings lose the NULs that they end with, so that one category would be taken for another."""
    with pytest.raises(DataError, match="column 'a'.* holds text with a NUL character"):
        infer({"a": ["x", "x\0"] * 20})


def test_memory_does_not_grow_with_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the most values that can matter no more are kept, and the report says at least so many."""
    monkeypatch.setattr(kinds, "MOST_NUMBERS", 100)
    generator = np.random.default_rng(0)
    (report,) = infer({"a": generator.normal(size=5000)}, batch=50).reports
    assert (report.what, report.rows) == ("numeric", 5000)
    assert 100 < report.distinct <= 150
    monkeypatch.setattr(kinds, "MOST_CATEGORIES", 10)
    with pytest.raises(DataError, match="free text, such as 'v.*', 11 or more different in 5000 rows"):
        infer({"a": [f"v{i % 40}" for i in generator.integers(0, 40, 5000)]}, batch=50)
    monkeypatch.setattr(kinds, "MOST_STATED_CATEGORIES", 20)
    with pytest.raises(DataError, match="has more than 20 categories"):
        infer({"a": [f"v{i % 40}" for i in range(5000)]}, stated={"a": "categorical"})
