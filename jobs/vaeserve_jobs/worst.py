"""The rows that score highest, of any number, in bounded memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Worst:
    """The positions and scores of the `limit` rows that score highest; of equal scores the first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.positions = np.empty(0, np.int64)
        self.scores = np.empty(0, np.float32)

    def add(self, scores: NDArray[np.float32], start: int) -> None:
        """Take rows that come after those before, the first of them at `start`; NaN is no score."""
        if not self.limit:
            return
        least = self.scores[-1] if len(self.scores) == self.limit else -np.inf
        (above,) = np.nonzero(scores > least)
        all_scores = np.concatenate([self.scores, scores[above]])
        order = np.argsort(-all_scores, kind="stable")[: self.limit]
        self.scores = all_scores[order]
        self.positions = np.concatenate([self.positions, start + above])[order]

    def to_json(self) -> dict[str, Any]:
        """Return positions and scores, the highest first."""
        return {"positions": self.positions.tolist(), "scores": self.scores.tolist()}


class Ranking:
    """The (shard, position) of the `limit` highest rows of all shards, the highest first; of equal ones the first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._rows: list[tuple[float, int, int]] = []

    def add(self, shard: int, worst: dict[str, Any]) -> None:
        """Take what `Worst` has of a shard."""
        pairs = zip(worst["scores"], worst["positions"], strict=True)
        more = [(-score, shard, position) for score, position in pairs]
        self._rows = sorted([*self._rows, *more])[: self.limit]

    @property
    def rows(self) -> list[tuple[int, int]]:
        """Those so far."""
        return [(shard, position) for _, shard, position in self._rows]
