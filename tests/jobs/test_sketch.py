"""Quantiles in bounded memory."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vaeserve_jobs.sketch import ERROR, Sketch

# Below the least normal number there is no relative error to speak of.
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)
VALUES = hnp.arrays(np.float32, st.integers(1, 200), elements=NUMBERS)


def sketch_of(*parts: np.ndarray) -> Sketch:
    """Return a sketch of parts that were counted apart and merged."""
    whole = Sketch()
    for part in parts:
        some = Sketch()
        some.add(part)
        whole.merge(Sketch.from_json(json.loads(json.dumps(some.to_json()))))
    return whole


@settings(deadline=None)
@given(VALUES, st.floats(0, 1))
def test_a_quantile_is_within_its_error(values: np.ndarray, level: float) -> None:
    """Each quantile lies within the stated share of the exact one, and the ends are exact."""
    sketch = sketch_of(values)
    exact = float(np.sort(values)[round(level * (len(values) - 1))])
    assert abs(sketch.quantile(level) - exact) <= ERROR * abs(exact) + 1e-37
    assert (sketch.quantile(0), sketch.least) == (values.min(), values.min())
    assert (sketch.quantile(1), sketch.greatest) == (values.max(), values.max())


@settings(deadline=None)
@given(VALUES, st.integers(0, 200))
def test_how_rows_are_divided_changes_nothing(values: np.ndarray, cut: int) -> None:
    """Parts merge to exactly what the whole gives."""
    assert sketch_of(values[:cut], values[cut:]).to_json() == sketch_of(values).to_json()


def test_of_no_numbers_there_is_no_quantile() -> None:
    """An empty sketch counts nothing and says NaN."""
    assert np.isnan(sketch_of(np.empty(0, np.float32)).quantile(0.5))
