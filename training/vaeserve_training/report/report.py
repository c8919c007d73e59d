"""The page of a subject, section by section."""

import numpy as np

from vaeserve import __version__
from vaeserve_training.report import latent_sections, model_sections, score_sections
from vaeserve_training.report.page import Facts, Page
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
        sections=(
            model_sections.data(subject, shown),
            model_sections.architecture(subject),
            model_sections.training(subject),
            latent_sections.dimensions(subject, shown),
            latent_sections.space(subject, shown),
            latent_sections.reconstructions(subject, shown),
            latent_sections.interpolations(subject, shown),
            latent_sections.drawn(subject, shown),
            score_sections.scores(subject, shown),
            score_sections.detection(subject, shown),
            score_sections.most_anomalous(subject, shown),
            model_sections.provenance(subject),
        ),
        made=f"Made by vaeserve {__version__}; log-likelihoods, bounds and KL are in nats.",
    )


def _glance(subject: Subject, shown: Shown | None) -> dict[str, str]:
    """Return the few figures that a hurried reader takes away."""
    facts = {}
    parts = [subject.held_out.get(name) for name in ("elbo", "log_likelihood", "kl")]
    if None not in parts:
        elbo, log_likelihood, kl = parts
        facts["held-out ELBO"] = f"{elbo:.4g} nats = {log_likelihood:.4g} reconstruction - {kl:.4g} KL"
    if "auroc" in subject.held_out:
        facts["held-out AUROC"] = f"{subject.held_out['auroc']:.3f}"
    if shown:
        rows = shown.score[shown.typical]
        facts["score"] = f"{number(float(np.median(rows)))} nats, the median of {counted(len(rows), 'normal row')}"
        active = int(shown.latents.active.sum())
        facts["latent dimensions"] = f"{active} of {subject.model.latent_dim} active"
    facts["calibrated on"] = counted(subject.calibration.rows, "row")
    return facts
