"""How like the rows a model's draws are: improved precision and recall."""

from typing import NamedTuple

from torch import Tensor

from vaeserve_training.sweep.neighbours import nearest_others, within

# Neighbours that say how far about a row others like it are to be expected.
# Source: Kynkäänniemi et al., 2019, section 3.1.
NEIGHBOURS = 3


class Realism(NamedTuple):
    """How draws compare with rows, each from 0 to 1.

    precision: the share of the draws that lie no farther from some row than that row's third nearest row does: how
    much of what is generated could be a row.
    recall: the share of the rows that lie so near to a draw: how much of what rows are is generated.
    quality: the harmonic mean of both.

    A draw that a row could be and a row that a draw could be are counted by neighbours alone, so the measure serves a
    table of 30 columns and an image of 64 pixels, needs no trained network, and tells the two ways to fail apart:
    draws in the gaps (precision), and all draws alike (recall). Training rows in the draws' place show what is within
    reach. Source: Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, 2019,
    eqs. 1 and 2, here among the rows themselves in the place of features of a network.
    """

    precision: float
    recall: float
    quality: float


def realism(draws: Tensor, rows: Tensor) -> Realism:
    """Compare points of draws with those of as many rows, both [points, width]."""
    precision = float(within(draws, rows, nearest_others(rows, k=NEIGHBOURS)).double().mean())
    recall = float(within(rows, draws, nearest_others(draws, k=NEIGHBOURS)).double().mean())
    both = precision + recall
    return Realism(precision, recall, 2 * precision * recall / both if both else 0.0)
