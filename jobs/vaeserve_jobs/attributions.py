"""Rows' top features as a column of lists, each feature with the nats by which it exceeds its usual."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaeserve.scores import Scores

ATTRIBUTIONS = pa.list_(pa.struct([("feature", pa.string()), ("excess", pa.float32())]))


def attributions(positions: NDArray[np.intp], excess: NDArray[np.float32], features: tuple[str, ...]) -> pa.Array:
    """Return the lists of ranked features, by their positions and excess [rows, count]; those with NaN are left out."""
    there = ~np.isnan(excess)
    names = pa.array(features, pa.string()).take(pa.array(positions[there]))
    return _lists(names, excess[there], there.sum(axis=1))


def attributions_of(scores: Scores) -> pa.Array:
    """Return the lists of scores that came with tuples."""
    flat = [attribution for row in scores.attributions for attribution in row]
    names = pa.array([attribution.feature for attribution in flat], pa.string())
    excess = np.fromiter((attribution.excess for attribution in flat), np.float32, len(flat))
    return _lists(names, excess, np.array([len(row) for row in scores.attributions], np.int64))


def _lists(names: pa.Array, excess: NDArray[np.float32], lengths: NDArray[np.int64]) -> pa.Array:
    pairs = pa.StructArray.from_arrays([names, pa.array(excess)], fields=list(ATTRIBUTIONS.value_type))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pairs, type=ATTRIBUTIONS)
