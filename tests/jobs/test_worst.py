"""The rows that score highest."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vaeserve_jobs.worst import Ranking, Worst

# Few values, so that many are equal.
SCORES = st.lists(st.sampled_from([1.0, 2.0, 2.5, 3.0, float("nan")]), max_size=60)


@settings(deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=4), st.integers(1, 12), st.integers(1, 20))
def test_it_is_what_sorting_all_rows_gives(shards: list[list[float]], limit: int, batch: int) -> None:
    """Whatever the batches and shards, the highest come first, and of equal ones those that come first in the input."""
    ranking = Ranking(limit)
    for shard, scores in enumerate(shards):
        worst = Worst(limit)
        for start in range(0, len(scores), batch):
            worst.add(np.array(scores[start : start + batch], np.float32), start)
        ranking.add(shard, worst.to_json())
    every = [
        (-score, shard, row)
        for shard, scores in enumerate(shards)
        for row, score in enumerate(scores)
        if score == score
    ]
    assert ranking.rows == [(shard, row) for _, shard, row in sorted(every)[:limit]]
