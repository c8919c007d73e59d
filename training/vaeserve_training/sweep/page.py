"""The page of a sweep: the table, what is traded for what, and each model in pictures."""

from vaeserve_training.report.page import Figure, Note, Page, Section, Table
from vaeserve_training.report.words import file_name
from vaeserve_training.sweep.pictures import (
    decoded_plane,
    divergences,
    latents_of,
    plane_of,
    rate_distortion,
    rows_of,
    shares,
    three_effects,
    ways,
)
from vaeserve_training.sweep.sweep import Entry, Sweep
from vaeserve_training.sweep.tiles import Tiles
from vaeserve_training.sweep.verdict import CRITERIA, Verdict


def page_of(sweep: Sweep) -> Page:
    """Return the page of a finished sweep."""
    tiles = Tiles(sweep.dataset.signature)
    sections = [_trade_off(sweep), _curves(sweep), *(_model(entry, tiles) for entry in sweep.entries)]
    if sweep.autoencoder is not None:
        sections.insert(2, _comparison(sweep, sweep.autoencoder, tiles))
    return Page(
        title=f"{file_name(sweep.data)}: what the weight of the KL trades",
        lead=(
            "The same model, trained on the same rows under several weights of the KL divergence, and measured on rows "
            "that were held out."
        ),
        sections=tuple(sections),
        made=f"Made by vaeserve sweep {sweep.data} with seed {sweep.seed}.",
    )


def _trade_off(sweep: Sweep) -> Section:
    rows = [(str(entry.case), *sweep.cells(entry)) for entry in sweep.entries]
    table = Table("Models", ("", *sweep.heads), tuple(rows))
    named = [(verdict, ", ".join(str(entry.case) for entry in sweep.named(verdict)) or "none") for verdict in Verdict]
    found = Table(
        "Verdicts",
        ("verdict", "models", "what it takes"),
        tuple((str(verdict), models, CRITERIA[verdict]) for verdict, models in named),
    )
    note = Note(
        f"Sample quality is the harmonic mean of precision and recall among nearest neighbours, from 0 to 1; as many "
        f"training rows have {sweep.within_reach:.2f}. Emptiness is the KL divergence from the prior to the aggregate "
        "posterior: 0 where the rows' posteriors fill the prior. Overlap is the share of latents that another row's "
        "posterior makes likelier than their own."
        + (" AUROC is of the scores that the model would be served with." if "AUROC" in sweep.heads else "")
    )
    return Section("table", "The trade-off", "Bounds and their parts are nats a row.", (table, found, note))


def _curves(sweep: Sweep) -> Section:
    plane = Figure(
        "Rate and distortion",
        "Nats that a row's latents cost, and nats that its values cost given them. Along the dotted line both together "
        "cost the same; a model nearer the lower left corner is a better one.",
        (rate_distortion(sweep), divergences(sweep)),
    )
    effects = Figure(
        "What the KL does",
        "It pulls the codes' centre to the origin, their spread to 1, and the posteriors over each other.",
        (three_effects(sweep), shares(sweep)),
    )
    return Section("curves", "From one end to the other", "Each weight of the KL is one model.", (plane, effects))


def _comparison(sweep: Sweep, autoencoder: Entry, tiles: Tiles) -> Section:
    balanced = [*sweep.named(Verdict.BALANCED), *sweep.weightings][0]
    both = (balanced, autoencoder)
    gaps = Figure(
        "Gaps in the latent space",
        "How far what is decoded lies from the nearest training row, in multiples of how far held-out rows lie: at 1 "
        "it could be one of them. Left along straight ways between two held-out rows' codes, medians and the middle "
        "four fifths; then over the plane that the codes spread in most.",
        (ways(both), *(plane_of(entry) for entry in both)),
    )
    parts: list[Figure | Table] = [gaps]
    if tiles.images:
        grid = Figure(
            "The same planes, decoded",
            f"On the left {balanced.case}, on the right the autoencoder.",
            tuple(decoded_plane(entry, tiles) for entry in both),
        )
        parts.append(grid)
    figures = {
        "reconstruction_error": "reconstruction error",
        "way_remoteness": "distance to the rows, in the middle of ways between codes",
        "prior_remoteness": "distance to the rows, decoded from N(0, I)",
        "sample_quality": "quality of samples from N(0, I)",
    }
    rows = [(head, *("" if e[name] is None else e[name] or 0.0 for e in both)) for name, head in figures.items()]
    parts.append(Table("In figures", ("", str(balanced.case), "autoencoder"), tuple(rows)))
    lead = f"The same network with a point for its posterior, beside {balanced.case}."
    return Section("autoencoder-or-vae", "Autoencoder or VAE", lead, tuple(parts))


def _model(entry: Entry, tiles: Tiles) -> Section:
    caption = (
        "Rows that were held out, what is reconstructed of them, samples decoded from N(0, I), and what is decoded on "
        "the way from the first row's code to the second's; then codes of held-out rows over the prior at one and two "
        "deviations, ellipses as wide as some of the posteriors."
    )
    figure = Figure("Rows and latents", caption, (rows_of(entry, tiles), latents_of(entry)))
    lead = f"Called {entry.verdict}." if entry.verdict else "No verdict applies."
    if entry.case.beta is None:
        lead = "A deterministic autoencoder: it has no KL to weigh."
    return Section(entry.case.name.replace(".", "-"), str(entry.case).capitalize(), lead, (figure,))
