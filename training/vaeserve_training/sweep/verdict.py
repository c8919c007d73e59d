"""Which weighting of a sweep is what every introduction to VAEs draws, by criteria written down."""

from collections.abc import Sequence
from enum import StrEnum

from vaeserve_training.sweep.measurement import Measurement

# The reconstruction explains less than this of the rows' variance: it says the same of all of them.
NOTHING_EXPLAINED = 0.05
# Nats a latent dimension by which the aggregate posterior misses the prior: past this most of the prior has no row.
# A Gaussian as wide as the prior that lies sqrt(6) = 2.4 deviations off it misses it by as much.
EMPTY = 3.0
# A reconstruction error is sharp up to this many times the sweep's least.
SHARP = 1.25
# Samples are poor below this share of the sweep's best quality.
POOR = 2 / 3
# A balanced model explains at least this share of the variance.
MOSTLY_EXPLAINED = 0.5


class Verdict(StrEnum):
    """What a weighting makes of a model."""

    ISOLATED = "isolated clusters, sharp reconstruction, poor generation"
    BALANCED = "balanced"
    COLLAPSED = "posterior collapse"


# The criteria in words, with their thresholds.
CRITERIA = {
    Verdict.ISOLATED: (
        f"emptiness of {EMPTY:g} nats or more a latent dimension, a reconstruction error of at most {SHARP:g} times "
        f"the sweep's least, and a sample quality below {POOR:.2f} of the sweep's best"
    ),
    Verdict.BALANCED: (
        f"of the weightings that are neither of the others, with emptiness below {EMPTY:g} nats a latent dimension, "
        f"{MOSTLY_EXPLAINED:.0%} or more of the variance explained and a sample quality of {POOR:.2f} of the "
        "sweep's best or more, the one with the best"
    ),
    Verdict.COLLAPSED: (
        f"no active unit, or less than {NOTHING_EXPLAINED:.0%} of the variance explained by the reconstruction"
    ),
}


def verdicts(rows: Sequence[Measurement]) -> list[Verdict | None]:
    """Return what each weighting of a sweep is, None where no criterion applies; see `CRITERIA`.

    Weightings that collapsed are compared with nothing, and nothing with them.
    """
    standing = [row for row in rows if not _collapsed(row)]
    found = [Verdict.COLLAPSED if _collapsed(row) else _isolated(row, standing) for row in rows]
    candidates = [
        index
        for index, row in enumerate(rows)
        if found[index] is None
        and _emptiness(row) < EMPTY
        and row.explained >= MOSTLY_EXPLAINED
        and not _poor(row, standing)
    ]
    if candidates:
        found[max(candidates, key=lambda index: rows[index].sample_quality)] = Verdict.BALANCED
    return found


def _collapsed(row: Measurement) -> bool:
    return row.active_units == 0 or row.explained < NOTHING_EXPLAINED


def _isolated(row: Measurement, standing: Sequence[Measurement]) -> Verdict | None:
    sharpest = min(other.reconstruction_error for other in standing)
    sharp = row.reconstruction_error <= SHARP * sharpest
    return Verdict.ISOLATED if sharp and _emptiness(row) >= EMPTY and _poor(row, standing) else None


def _poor(row: Measurement, standing: Sequence[Measurement]) -> bool:
    return row.sample_quality < POOR * max(other.sample_quality for other in standing)


def _emptiness(row: Measurement) -> float:
    """Return the emptiness a latent dimension, nats."""
    assert row.emptiness is not None  # noqa: S101 - a deterministic autoencoder is no weighting
    return row.emptiness / row.latent_dim
