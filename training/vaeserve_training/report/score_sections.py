"""What a page says of scores: where they lie, what they are worth, and the rows that stand out."""

import numpy as np

from vaeserve.scores import Bound
from vaeserve_training.data import Arrays
from vaeserve_training.report import draw_images, draw_scores
from vaeserve_training.report.page import Facts, Figure, Part, Section, Table
from vaeserve_training.report.picture import Picture
from vaeserve_training.report.scoring import Threshold, coverage, curves, thresholds
from vaeserve_training.report.shown import Shown
from vaeserve_training.report.subject import Subject
from vaeserve_training.report.words import counted, number, value

# Rows in the table of the most anomalous, those of them that are drawn, and features that are named.
LISTED, DRAWN, TILES, NAMED = 10, 3, 6, 3
# Fewer rows than this have no curve to speak of.
FEWEST_CALIBRATED = 5


def scores(subject: Subject, shown: Shown | None) -> Section:
    """Draw the scores with thresholds, and how p-values hold."""
    lead = (
        "The score is minus the ELBO, in nats, by the prior and the posterior that rows are scored with: higher is "
        "more anomalous. Thresholds come from rows held out for that."
    )
    lines = thresholds(subject.calibration)
    of_calibration = subject.calibration.scores[Bound.ELBO].astype(np.float64)
    score, anomalous = (shown.score, shown.anomalous) if shown else (of_calibration, None)
    pictures = [draw_scores.histogram(score, anomalous, lines, "scores")]
    caption = "Where scores lie, and above which at most 5, 1 and 0.1 % of normal rows are expected."
    if shown is None:
        caption += " These are the rows that calibrated the bundle."
    normal = shown.p_value[shown.normal] if shown else np.empty(0)
    if len(normal) >= FEWEST_CALIBRATED:
        pictures.append(_calibration(subject, normal))
        caption += (
            " The second picture has each rate that is asked for against the share of normal rows that it flags; "
            "at each rate 95 % of such shares lie in the band. Below the diagonal too few are flagged, above it too "
            "many."
        )
    parts: list[Part] = [Figure("Scores, thresholds and calibration", caption, tuple(pictures))]
    parts.append(_thresholds(shown, lines))
    return Section("scores", "Scores and calibration", lead, tuple(parts))


def _calibration(subject: Subject, p_values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Picture:
    measured = coverage(p_values, calibration_rows=subject.calibration.rows)
    return draw_scores.calibration(measured, "calibration", rows=len(p_values))


def _thresholds(shown: Shown | None, lines: list[Threshold]) -> Table:
    header = ["false-positive rate", "threshold, nats"]
    if shown:
        header += ["normal rows above"] + (["anomalous rows above"] if _has_anomalous(shown) else [])
    rows = []
    for line in lines:
        said = number(line.score) if line.score is not None else f"not supported: {line.refusal}"
        rows.append((f"{line.rate * 100:g} %", said, *(_above(shown, line) if shown else ())))
    return Table("Thresholds", tuple(header), tuple(rows))


def _above(shown: Shown, line: Threshold) -> list[str]:
    kinds = [shown.normal] + ([~shown.normal] if _has_anomalous(shown) else [])
    if line.score is None:
        return [""] * len(kinds)
    above = shown.score > line.score
    return [f"{int(above[kind].sum()):,} of {int(kind.sum()):,}" for kind in kinds]


def _has_anomalous(shown: Shown) -> bool:
    return shown.anomalous is not None and bool(shown.anomalous.any())


def detection(shown: Shown) -> Section | None:
    """Draw how well labels are told apart; None where there aren't both kinds."""
    lead = (
        "How well the score puts anomalous rows before normal ones. No model sees labels: they keep anomalous rows out "
        "of training."
    )
    measured = None if shown.anomalous is None else curves(shown.score, shown.anomalous)
    if measured is None:
        return None
    caption = (
        "First the share of anomalous rows flagged against the share of normal ones, at every threshold; then, of the "
        "rows flagged, how many are anomalous. Curves in the upper corners are good; the dashed lines are chance."
    )
    pictures = (draw_scores.roc(measured, "roc"), draw_scores.precision_recall(measured, "precision-recall"))
    facts = {
        "AUROC": f"{measured.auroc:.4f}",
        "average precision": f"{measured.average_precision:.4f}",
        "rows": f"{counted(len(shown.rows), 'row')}, {measured.base:.1%} of them anomalous",
    }
    return Section(
        "detection", "Detection", lead, (Facts(facts), Figure("ROC and precision-recall", caption, pictures))
    )


def most_anomalous(subject: Subject, shown: Shown) -> Section:
    """Show the rows with the highest scores, and which features made them so."""
    lead = "The rows with the highest scores, and by how many nats each feature is worse explained than on normal rows."
    figure = _of_images(subject, shown) if not subject.signature.columns else _of_table(subject, shown)
    return Section("anomalous", "The most anomalous rows", lead, (figure, _listed(subject, shown)))


def _of_table(subject: Subject, shown: Shown) -> Figure:
    features = subject.signature.features
    pictures = tuple(
        draw_scores.excess_bars(
            shown.excess[row], features, f"anomalous-{rank}",
            title=f"Row {shown.positions[row]:,}: {number(shown.score[row])} nats",
        )
        for rank, row in enumerate(shown.worst[:DRAWN])
    )  # fmt: skip
    return Figure("What made them so", "Shares of the score, not causes: a longer bar is a bigger surprise.", pictures)


def _of_images(subject: Subject, shown: Shown) -> Figure:
    rows = shown.worst[:TILES]
    shape = subject.signature.inputs[0].shape[1:]
    decoded = subject.model.decode(shown.latents.mean[rows].astype(np.float32))["image"]
    strips = [
        ("input", draw_images.colours_of(shown.inputs(rows)["image"])),
        ("reconstruction", draw_images.colours_of(decoded)),
        ("surprise", np.stack([draw_images.heat(shown.excess[row], shape) for row in rows])),
    ]
    above = [f"p {shown.p_value[row]:.2g}" for row in rows]
    alt = "The most anomalous images, their reconstructions, and which pixels are worse explained than usual."
    picture = draw_images.strips(strips, "anomalous", alt=alt, above=above)
    caption = "Bright pixels are those that are worse explained than usual; the brightest of each image are yellow."
    return Figure("What made them so", caption, (picture,))


def _listed(subject: Subject, shown: Shown) -> Table:
    chosen = shown.worst[:LISTED]
    inputs, decoded = shown.inputs(chosen), subject.model.decode(shown.latents.mean[chosen].astype(np.float32))
    labels = ("label",) if shown.anomalous is not None else ()
    rows = []
    for index, row in enumerate(chosen):
        label = ("anomalous" if shown.anomalous[row] else "normal",) if shown.anomalous is not None else ()
        figures = number(shown.score[row]), f"{shown.p_value[row]:.3g}", number(shown.kl[row])
        rows.append(
            (f"{shown.positions[row]:,}", *label, *figures, _named(subject, shown, row, index, inputs, decoded))
        )
    header = ("row", *labels, "score, nats", "p-value", "KL, nats", "features, by how many nats worse than usual")
    return Table("The highest scores", header, tuple(rows), "Rows are counted from 0 in the order of those shown.")


def _named(subject: Subject, shown: Shown, row: int, index: int, inputs: Arrays, decoded: Arrays) -> str:
    """Return a row's most surprising features, of a table with what they are and what the model expects."""
    said = []
    for feature in np.argsort(-shown.excess[row], kind="stable")[:NAMED]:
        more = f"{shown.excess[row, feature]:+.3g}"
        if subject.signature.columns:
            column = subject.signature.columns[feature]
            found, expected = (value(subject.signature, arrays, index, column) for arrays in (inputs, decoded))
            said.append(f"{column.name} {more} ({found}, expected {expected})")
        else:
            said.append(f"{subject.signature.features[feature]} {more}")
    return "; ".join(said)
