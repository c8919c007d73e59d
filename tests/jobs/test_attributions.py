"""Top features, as columns and as tuples."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vaeserve.scores import rank_features
from vaeserve_jobs.attributions import attributions

VALUES = st.sampled_from([-2.0, 0.0, 1.5, 3.0, np.nan])


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 6), st.just(12)), elements=VALUES), st.integers(1, 15))
def test_features_are_ranked_as_by_sorting(terms: np.ndarray, count: int) -> None:
    """Few or many, the features come by their excess, of equal ones the first, and NaN last and in no list."""
    baseline = np.arange(12, dtype=np.float32) % 3
    top, excess = rank_features(terms, baseline, count)
    surprise = -terms - baseline
    order = np.argsort(-surprise, axis=1, kind="stable")[:, :count]
    expected = np.take_along_axis(surprise, order, axis=1)
    np.testing.assert_array_equal(excess, expected)
    assert (np.where(np.isnan(expected), -1, order) == np.where(np.isnan(excess), -1, top)).all()
    names = tuple(f"f{place}" for place in range(12))
    assert attributions(top, excess, names).to_pylist() == [
        [{"feature": names[place], "excess": value} for place, value in zip(row, values, strict=True) if value == value]
        for row, values in zip(order, expected, strict=True)
    ]
