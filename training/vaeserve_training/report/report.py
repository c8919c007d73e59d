"""The page of a subject, section by section."""

from collections.abc import Iterator

import numpy as np

from vaeserve import __version__
from vaeserve_training.report import latent_sections, model_sections, score_sections
from vaeserve_training.report.page import Facts, Page, Section
from vaeserve_training.report.shown import Shown, show
from vaeserve_training.report.subject import Subject
from vaeserve_training.report.words import counted, number


def report(subject: Subject) -> Page:
    """Return what a person should see of a model: the same for the same subject."""
    shown = show(subject)
    return Page(
        title=subject.title,
        lead=subject.lead,
        facts=Facts(_glance(subject, shown)),
        sections=tuple(section for section in _sections(subject, shown) if section is not None),
        made=f"Made by vaeserve {__version__}; log-likelihoods, bounds and KL are in nats.",
    )


def _sections(subject: Subject, shown: Shown | None) -> Iterator[Section | None]:
    """Yield the sections in order; what takes rows or labels only where there are some."""
    yield model_sections.data(subject, shown)
    yield model_sections.architecture(subject)
    if subject.evaluations:
        yield model_sections.training(subject)
    if shown:
        yield latent_sections.dimensions(shown)
        yield latent_sections.space(shown)
        yield latent_sections.reconstructions(subject, shown)
    yield latent_sections.interpolations(subject, shown)
    yield latent_sections.drawn(subject, shown)
    yield score_sections.scores(subject, shown)
    if shown:
        yield score_sections.detection(shown)
        yield score_sections.most_anomalous(subject, shown)
    yield model_sections.provenance(subject)
    yield model_sections.absent(_absent(subject, shown))


def _absent(subject: Subject, shown: Shown | None) -> dict[str, str]:
    absent = dict(subject.absent)
    if shown is None and subject.rows is not None:
        absent["latent space, reconstructions"] = "No row can be scored; --data ROWS names others."
    elif shown is not None and (shown.anomalous is None or shown.anomalous.all() or not shown.anomalous.any()):
        absent["ROC, precision and recall"] = "They take labels of both kinds: --data ROWS --label COLUMN."
    return absent


def _glance(subject: Subject, shown: Shown | None) -> dict[str, str]:
    """Return the few figures that a hurried reader takes away."""
    facts = {}
    parts = [subject.held_out.get(name) for name in ("elbo", "log_likelihood", "kl")]
    if None not in parts:
        elbo, log_likelihood, kl = parts
        facts["held-out ELBO"] = (
            f"{elbo:.4g} nats = {log_likelihood:.4g} reconstruction - {kl:.4g} KL, by the encoder's posterior, "
            f"under {'the prior of ' if subject.prior == 'exemplars' else ''}{subject.prior}"
        )
    if "auroc" in subject.held_out:
        facts["held-out AUROC"] = f"{subject.held_out['auroc']:.3f}"
    if shown:
        rows, kind = shown.score[shown.typical], "row" if shown.anomalous is None else "normal row"
        facts["score"] = f"{number(float(np.median(rows)))} nats, the median of {counted(len(rows), kind)}"
        active = int(shown.usual_latents.active.sum())
        facts["latent dimensions"] = f"{active} of {subject.model.latent_dim} active"
    facts["calibrated on"] = counted(subject.calibration.rows, "row")
    return facts
