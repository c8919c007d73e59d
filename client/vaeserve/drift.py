"""How scored rows lie against a model's calibration: whether it still knows what it sees.

Among rows like those that calibrated, p-values are uniform: 1 % of them are at most 0.01, whichever the model and its
version are. So scores are counted by p-value, which is to count them between the calibration's quantiles.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.manifest import Moments

P_VALUES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

# A row may be 1e30 nats from all others: in a sum it would drown them for ever. So values that lie further from the
# calibration's mean than so many of its standard deviations, or nats where that is more, count as if they lay there.
REACH = 100.0


def within_reach(values: NDArray[Any], calibration: Moments) -> NDArray[np.float64]:
    """Return values, none of them NaN, each within reach of the calibration."""
    reach = REACH * max(1.0, calibration.standard_deviation)
    return np.clip(values.astype(np.float64), calibration.mean - reach, calibration.mean + reach)


def count_p_values(p_values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return how many p-values, none of them NaN, lie between each two of `P_VALUES`, upper ends included."""
    return np.bincount(np.searchsorted(P_VALUES, p_values, side="left"), minlength=len(P_VALUES) + 1)
