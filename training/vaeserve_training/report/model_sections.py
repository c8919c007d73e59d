"""What a page says of the data, of the model, of its training and of where it came from."""

from collections.abc import Mapping

import numpy as np

from vaeserve.signature import Column
from vaeserve_training.report import draw_images, draw_model
from vaeserve_training.report.page import Facts, Figure, Part, Section, Table
from vaeserve_training.report.shown import Shown
from vaeserve_training.report.subject import Subject
from vaeserve_training.report.words import counted, number

MOST_COLUMNS = 40
# Images in a strip.
TILES = 6


def data(subject: Subject, shown: Shown | None) -> Section:
    """Say what the rows are."""
    parts: list[Part] = [Facts(dict(subject.data) | _labels(subject, shown))]
    if shown and not subject.signature.columns:
        parts.append(_images(shown))
    if subject.signature.columns:
        parts.append(_columns(subject, shown))
    lead = "What the model was trained on, and which rows this page shows it on."
    return Section("data", "The data", lead, tuple(parts))


def _labels(subject: Subject, shown: Shown | None) -> dict[str, str]:
    if subject.rows is None:
        return {}
    facts = {"shown on": f"{counted(len(subject.rows), 'row')}: {subject.rows_name}"}
    if subject.rows.anomalous is not None:
        facts["labels"] = f"{int(subject.rows.anomalous.sum()):,} of them anomalous"
    else:
        facts["labels"] = "none"
    if shown and shown.unscorable:
        facts["left out"] = f"{counted(shown.unscorable, 'row')} that the model can't score"
    return facts


def _images(shown: Shown) -> Figure:
    rows = []
    for name, mask in (
        ("normal" if shown.anomalous is not None else "rows", shown.normal),
        ("anomalous", ~shown.normal),
    ):
        chosen = np.flatnonzero(mask)[:TILES]
        if len(chosen):
            rows.append((name, draw_images.colours_of(shown.inputs(chosen)["image"])))
    strip = draw_images.strips(
        rows, "data", alt="Some of the images: " + ", then ".join(name for name, _ in rows) + "."
    )
    return Figure("Some rows", "The first of each kind, as they are.", (strip,))


def _columns(subject: Subject, shown: Shown | None) -> Table:
    columns = subject.signature.columns
    rows = tuple(_column(subject, shown, column) for column in columns[:MOST_COLUMNS])
    header = ("column", "kind", "values", "missing")
    hidden = len(columns) - MOST_COLUMNS
    caption = [f"The first {MOST_COLUMNS}; {hidden:,} more are not listed."] if hidden > 0 else []
    if shown:
        caption.append("Values are of the rows that this page shows.")
    return Table("Columns", header, rows, " ".join(caption))


def _column(subject: Subject, shown: Shown | None, column: Column) -> tuple[str, str, str, str]:
    missing = "may be" if column.nullable else "no"
    if column.name in subject.masked:
        return column.name, column.kind, "one value in training; neither seen nor scored", missing
    if column.kind == "categorical":
        names = ", ".join(column.categories[:6])
        more = len(column.categories) - 6
        return column.name, column.kind, f"{names} and {more:,} more" if more > 0 else names, missing
    if shown is None:
        return column.name, column.kind, "0 or 1" if column.kind == "binary" else "numbers", missing
    position = subject.signature.numeric_columns.index(column)
    values = shown.rows.inputs["numeric"][:, position].astype(np.float64)
    known = values[np.isfinite(values)]
    share = 1 - len(known) / max(1, len(values))
    if column.nullable:
        missing = f"{share:.1%} of rows"
    if not len(known):
        return column.name, column.kind, "all missing", missing
    if column.kind == "binary":
        return column.name, column.kind, f"1 in {known.mean():.1%} of rows", missing
    low, middle, high = (number(float(value)) for value in np.quantile(known, (0.05, 0.5, 0.95)))
    return column.name, column.kind, f"median {middle}; nine tenths from {low} to {high}", missing


def architecture(subject: Subject) -> Section:
    """Draw the networks."""
    encoder, decoder = subject.architecture
    pictures = tuple(
        draw_model.architecture(stack, name) for stack, name in ((encoder, "encoder"), (decoder, "decoder"))
    )
    caption = (
        "Read each from above. The encoder turns a row into a distribution of a few latent numbers; a draw from it "
        "goes into the decoder, which says how likely each value of the row is. A box is as wide as it has numbers, on "
        "a logarithmic scale; the blue ones learn."
    )
    figure = Figure("The layers and the shape of a row behind each", caption, pictures)
    lead = "A bottleneck between two networks: what doesn't fit through it can't be explained, and so is surprising."
    return Section("architecture", "Architecture", lead, (Facts(dict(subject.design)), figure))


def training(subject: Subject) -> Section:
    """Draw what training reached, evaluation by evaluation."""
    lead = "The bound on how well rows are explained, and its two parts, on rows that only told when to stop."
    evaluations, best = subject.evaluations, subject.best_step
    pictures = (
        draw_model.over_training(evaluations, {"elbo": "held-out ELBO"}, "elbo", title="ELBO", best=best),
        draw_model.over_training(
            evaluations, {"log_likelihood": "reconstruction"}, "log-likelihood", title="log p(x|z)", best=best
        ),
        draw_model.over_training(
            evaluations, {"kl": "KL(q || prior)", "mutual_information": "what z says of x"}, "kl", title="KL", best=best
        ),
        draw_model.usage_over_training(evaluations, "active", latent_dim=subject.model.latent_dim),
    )
    caption = (
        "ELBO = reconstruction - KL. It should rise and level off; where it falls again the model has begun to learn "
        "its rows by heart, and the step with the best bound is kept. A KL near 0 means that the latents say nothing."
    )
    figure = Figure("The ELBO, reconstruction and KL over training", caption, pictures)
    last = evaluations[-1]
    facts = {
        "evaluations": f"{len(evaluations)}, the last at step {last['step']:,} after {last['seconds']:.0f} s",
        **({"kept": f"step {best:,}"} if best is not None else {}),
    }
    return Section("training", "Training", lead, (Facts(facts), figure))


def provenance(subject: Subject) -> Section:
    """Say how the outputs agree with PyTorch's, where the model came from, and what it isn't for."""
    parts: list[Part] = []
    if subject.parity:
        parity = subject.parity
        rows = tuple((output, f"{error:.1e}") for output, error in parity.errors.items())
        caption = (
            f"The largest |a - b| / max(1, |b|) on {counted(parity.rows, 'held-out row')}; the export refuses more "
            f"than {parity.tolerance:g}."
        )
        parts.append(
            Table("Parity of ONNX Runtime with PyTorch in double precision", ("output", "error"), rows, caption)
        )
    parts.append(Facts({name: value for name, value in subject.provenance.items() if value}))
    parts.append(_limits(subject))
    lead = "What it takes to make this model again, and what it doesn't promise."
    return Section("provenance", "Parity, provenance, limits of use", lead, tuple(parts))


def _limits(subject: Subject) -> Table:
    rate = 1 / (subject.calibration.rows + 1)
    limits = (
        ("What normal means", "Rows like those it was trained on; when they drift, calibrate or train anew."),
        ("P-values", f"Hold on average over calibrations, for rows exchangeable with the {subject.calibration.rows:,} "
         f"that calibrated; no rate below {rate:.2g} is supported."),
        ("Features", "Their shares of a score are where a row is badly explained, not what caused it."),
        ("Scores", "Of this model alone: a row's scores by two models don't compare, its p-values do. Models compare "
         "by their mean bounds on the same rows, where their nats are of the same values."),
        ("Samples", "Show what the decoder learned. They are no substitute for data, and nothing proves that none is "
         "like a row that it was trained on."),
    )  # fmt: skip
    return Table("Limits of use", ("of", "what to know"), limits)


def absent(found: Mapping[str, str]) -> Section | None:
    """Say what isn't on the page, and how to get it; None where all of it is."""
    if not found:
        return None
    rows = tuple(found.items())
    lead = "What this page can't show for want of something, and how to see it."
    return Section("absent", "Not on this page", lead, (Table("How to get it", ("what", "how"), rows),))
