"""Rows cut into parts, and results cut and joined."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vaeserve.messages import Reconstructed
from vaeserve.parts import MOST_BYTES, MOST_ROWS, byte_count, cut, joined, part_rows, row_count, take
from vaeserve.scores import Attribution, Scores


def scores_of(rows: int, *, attributed: bool) -> Scores:
    """Return scores of rows that can be told apart."""
    numbers = np.arange(rows, dtype=np.float32)
    attributions = tuple((Attribution("f", float(row)),) for row in range(rows)) if attributed else ()
    return Scores(
        "m", "1", numbers, numbers, numbers, numbers, numbers.astype(np.float64), numbers > 3,
        numbers.astype(np.int8), attributions,
    )  # fmt: skip


@given(st.integers(0, 60), st.lists(st.integers(0, 60), max_size=5), st.booleans())
def test_what_is_cut_and_joined_is_as_it_was(rows: int, ends: list[int], attributed: bool) -> None:
    """Wherever a result is cut, its parts have their own rows, and together they are it."""
    whole = scores_of(rows, attributed=attributed)
    places = [0, *sorted(min(end, rows) for end in ends), rows]
    parts = [take(whole, slice(a, b)) for a, b in pairwise(places)]
    assert [len(part) for part in parts] == [b - a for a, b in pairwise(places)]
    again = joined(parts)
    assert again.score.tobytes() == whole.score.tobytes()
    assert again.anomalous.dtype == bool
    assert (again.attributions, again.model, again.version) == (whole.attributions, "m", "1")


def test_mappings_of_arrays_are_cut_and_joined_too() -> None:
    """Each of their arrays is."""
    status = np.zeros(4, np.int8)
    whole = Reconstructed("m", "1", {"numeric": np.arange(8.0).reshape(4, 2), "z": np.arange(4)}, status)
    again = joined([take(whole, slice(0, 3)), take(whole, slice(3, 4))])
    assert again.outputs["numeric"].tobytes() == whole.outputs["numeric"].tobytes()
    assert again.outputs["z"].tolist() == [0, 1, 2, 3]


@given(st.integers(1, 20_000), st.integers(1, 3000), st.integers(1, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_parts_keep_within_a_services_limits(rows: int, columns: int, num_samples: int, top_features: int) -> None:
    """Together they are all rows, and none has more bytes, rows or samples than a service takes by default."""
    array = np.broadcast_to(np.float32(0), (rows, columns))
    size = part_rows({"": array}, num_samples=num_samples, top_features=top_features)
    parts = list(cut({"": array}, size))
    assert sum(map(row_count, parts)) == rows
    for part in parts:
        count = row_count(part)
        assert count == 1 or (byte_count(part) <= MOST_BYTES and count * num_samples <= 100_000)
        assert count <= MOST_ROWS


def test_strings_count_by_their_length() -> None:
    """Long ones make small parts, and no rows are one part without any."""
    long = np.array([["x" * 10**6]] * 8, object)
    assert part_rows({"categorical": long}) == 2
    assert byte_count({"categorical": np.array([["é", None]], object)}) >= 2
    assert [row_count(part) for part in cut({"": np.zeros((0, 3))}, 5)] == [0]
    assert row_count({"": np.float32(1)}) == 0  # type: ignore[dict-item]
