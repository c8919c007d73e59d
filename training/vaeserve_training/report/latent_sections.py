"""What a page says of the latent space and of what the decoder makes of it."""

import numpy as np
from numpy.typing import NDArray

from vaeserve_training.data import Arrays
from vaeserve_training.report import draw_images, draw_latents, draw_rows
from vaeserve_training.report.decoding import SPAN, STEPS, Scale, Way, along, between, far_apart, samples
from vaeserve_training.report.latents import Latents, most_active, principal
from vaeserve_training.report.page import Facts, Figure, Note, Part, Section, Table
from vaeserve_training.report.shown import Shown
from vaeserve_training.report.subject import Subject
from vaeserve_training.report.words import counted, listed, number, value

# Rows that are shown one by one, ways through the latent space, and samples.
ROWS, TILES, WAYS, SAMPLES, LISTED_SAMPLES = 3, 6, 3, 500, 6
MOST_RANGES = 12
MOST_COLUMNS = 12


def dimensions(shown: Shown) -> Section:
    """Say which latent dimensions are used."""
    lead = (
        "How much each dimension of the latent space says of a row; one that says nothing has collapsed onto the prior."
    )
    latents = shown.usual_latents
    active = [f"z{index}" for index in latents.by_activity if latents.active[index]]
    collapsed = [f"z{index}" for index in latents.by_activity if not latents.active[index]]
    facts = {
        f"active, {len(active)}": listed(active, most=64) or "none",
        f"collapsed, {len(collapsed)}": listed(collapsed, most=64) or "none",
        "KL to N(0, I)": f"{latents.kl.sum():.4g} nats in all, a mean over {counted(len(latents.mean), _kind(shown))}",
    }
    hidden = len(latents.kl) - draw_latents.MOST_BARS
    caption = (
        "A dimension is active if its mean has a variance of more than 0.01 over rows (Burda et al., 2016). The longer "
        "a bar, the more nats of a row pass through that dimension."
        + (" Both are of the normal rows." if shown.anomalous is not None and shown.normal.any() else "")
        + (f" The {draw_latents.MOST_BARS} largest; {hidden:,} more are not drawn." if hidden > 0 else "")
    )
    first = int(latents.by_activity[0])
    pictures = (
        draw_latents.kl_by_dimension(latents, "kl-by-dimension"),
        draw_latents.marginal(shown.latents, first, shown.anomalous, "marginal"),
    )
    figure = Figure("KL by dimension, and where rows lie in the most active one", caption, pictures)
    parts: list[Part] = [Facts(facts), figure]
    if not active:
        parts.append(
            Note(
                "Posterior collapse: no dimension says anything of a row, so every row is explained alike. Train with "
                "a lower objective.beta, a longer objective.kl_warmup or objective.free_bits = 0.1."
            )
        )
    return Section("dimensions", "Latent dimensions", lead, tuple(parts))


def _kind(shown: Shown) -> str:
    return "normal row" if shown.anomalous is not None and shown.normal.any() else "row"


def space(shown: Shown) -> Section:
    """Draw the latent space in two dimensions."""
    lead = "Each row where the encoder puts it: the mean of its posterior."
    if shown.latents.mean.shape[1] < 2:
        note = Note("The latent space has one dimension; where rows lie in it is drawn above.")
        return Section("space", "Latent space", lead, (note,))
    plane = most_active(shown.latents, over=shown.usual_latents)
    pictures = (
        draw_latents.scatter(plane, shown.anomalous, "most-active", title="Most active dimensions"),
        draw_latents.scatter(principal(shown.latents), shown.anomalous, "principal", title="Principal components"),
    )
    caption = (
        "The circles hold 50, 90 and 99 % of the prior N(0, I), which training pulls posteriors to. The wider a row's "
        "posterior, the nearer its mean lies to the centre; a row far outside is there against the KL's price."
        + (" Anomalous rows may well lie among the others here, and be told by how badly they decode." if
           shown.anomalous is not None and shown.anomalous.any() else "")
    )  # fmt: skip
    figure = Figure("The two most active dimensions, and the first two principal components (PCA)", caption, pictures)
    drawn = min(len(shown.rows), draw_latents.MOST_POINTS)
    some = (Facts({"drawn": f"{drawn:,} of {len(shown.rows):,} rows"}),) if drawn < len(shown.rows) else ()
    return Section("space", "Latent space", lead, (*some, figure))


def reconstructions(subject: Subject, shown: Shown) -> Section:
    """Show rows beside what the decoder makes of them."""
    lead = (
        "A row goes in, what the model makes of it comes out. Normal rows should come back, rows unlike them less well."
    )
    if not subject.signature.columns:
        return Section("reconstructions", "Reconstructions", lead, (_image_reconstructions(subject, shown),))
    return Section("reconstructions", "Reconstructions", lead, tuple(_table_reconstructions(subject, shown)))


def _decoded(subject: Subject, shown: Shown, rows: NDArray[np.intp]) -> Arrays:
    return subject.model.decode(shown.latents.mean[rows].astype(np.float32))


def _image_reconstructions(subject: Subject, shown: Shown) -> Figure:
    groups = [("typical", "Typical rows", shown.typical[:TILES])]
    if len(shown.rows) > TILES:
        groups.append(("worst", "The most anomalous rows", shown.worst[:TILES]))
    pictures = []
    for key, title, rows in groups:
        strips = [
            ("input", draw_images.colours_of(shown.inputs(rows)["image"])),
            ("reconstruction", draw_images.colours_of(_decoded(subject, shown, rows)["image"])),
        ]
        above = [f"{shown.score[row]:.0f} nats" for row in rows]
        alt = f"{title} over their reconstructions; scores {', '.join(above)}."
        pictures.append(draw_images.strips(strips, f"reconstructions-{key}", alt=alt, above=above))
    caption = "First rows of about the median score, then those with the highest. Over each its score."
    return Figure("Inputs and their reconstructions", caption, tuple(pictures))


def _chosen(shown: Shown) -> list[tuple[str, int]]:
    """Return rows to show one by one, and what each is."""
    typical, worst = int(shown.typical[0]), shown.worst
    rows = [("Typical row", typical)]
    normal = [int(row) for row in worst if shown.normal[row]]
    if shown.anomalous is not None and normal:
        rows.append(("Normal, highest score", normal[0]))
    rows.append(("Highest score of all", int(worst[0])))
    distinct = {row: what for what, row in reversed(rows)}
    return [(what, row) for what, row in rows if distinct[row] == what]


def _table_reconstructions(subject: Subject, shown: Shown) -> list[Part]:
    rows = _chosen(shown)
    positions = np.array([row for _, row in rows])
    inputs, decoded = shown.inputs(positions), _decoded(subject, shown, positions)
    parts: list[Part] = []
    if subject.signature.numeric_columns:
        scale = Scale.of(subject.signature, shown.usual)
        before, after = scale(inputs), scale(decoded)
        pictures = tuple(
            draw_rows.reconstruction(
                before[index], after[index], scale, f"reconstruction-{index}",
                title=f"{what}: {number(float(shown.score[row]))} nats",
            )
            for index, (what, row) in enumerate(rows)
        )  # fmt: skip
        caption = (
            "The values in which each row is farthest from the usual, and what the model gives back. Bars of one "
            "length mean that the model expects what it sees."
        )
        parts.append(Figure("Inputs and their reconstructions", caption, pictures))
    if subject.signature.categorical_columns:
        parts.append(_categories(subject, inputs, decoded, [what for what, _ in rows]))
    return parts


def _categories(subject: Subject, inputs: Arrays, decoded: Arrays, names: list[str]) -> Table:
    columns = subject.signature.categorical_columns[:MOST_COLUMNS]
    rows = tuple(
        (name, column.name, str(inputs["categorical"][row, index]) or "(missing)",
         str(decoded["categorical"][row, index]))
        for row, name in enumerate(names)
        for index, column in enumerate(columns)
    )  # fmt: skip
    return Table("Categories and the likeliest ones by the model", ("row", "column", "input", "reconstruction"), rows)


def interpolations(subject: Subject, shown: Shown | None) -> Section:
    """Walk between rows and along axes."""
    lead = (
        "The decoder along straight lines. A latent space that is put to use changes smoothly: half way between two "
        "rows lies something like both, not a jump nor noise."
    )
    ways = between(subject.model, _ends(subject, shown))
    axes = along(subject.model, _used(subject, shown)[:WAYS].tolist())
    parts: list[Part] = []
    if ways:
        caption = "From one row's latents to another's; " + (
            "typical rows that lie far apart." if shown else "synthetic rows of the bundle, for it has no others."
        )
        parts.append(
            _walked(subject, shown, ways, "Between rows", caption, key="between", label="from one row to the other")
        )
    caption = (
        f"One of the most active dimensions goes from {-SPAN:g} to {SPAN:g}, where the prior has nearly all its mass, "
        "while the others stay at 0. What changes is what the dimension stands for."
    )
    parts.append(_walked(subject, shown, axes, "Along latent axes", caption, key="along", label="latent"))
    return Section("interpolations", "Interpolations", lead, tuple(parts))


def _used(subject: Subject, shown: Shown | None) -> NDArray[np.intp]:
    """Return the dimensions, the most active first; without rows by what the encoder makes of the decoder's samples."""
    if shown:
        return shown.usual_latents.by_activity
    outputs = samples(subject.model, SAMPLES)
    posterior = subject.model.encode({entry.name: outputs[entry.name] for entry in subject.signature.inputs})
    return Latents(posterior["mean"].astype(np.float64), posterior["log_variance"].astype(np.float64)).by_activity


def _ends(subject: Subject, shown: Shown | None) -> NDArray[np.float32]:
    """Return latents to go between, [ends, latent]."""
    if shown is None:
        golden = subject.golden if subject.golden is not None else np.empty((0, subject.model.latent_dim), np.float32)
        return golden[: WAYS + 1]
    some = shown.typical[: max(2, len(shown.typical) // 2)]
    chosen = some[far_apart(shown.latents.mean[some], WAYS + 1, first=0)]
    return shown.latents.mean[chosen].astype(np.float32)


def _walked(
    subject: Subject, shown: Shown | None, ways: list[Way], title: str, caption: str, *, key: str, label: str
) -> Part:
    if not subject.signature.columns:
        rows = [(way.name, draw_images.colours_of(way.outputs["image"])) for way in ways]
        ends = [f"{at:g}" if index in (0, STEPS // 2, STEPS - 1) else "" for index, at in enumerate(ways[0].at)]
        alt = f"{title}: what the decoder makes of {STEPS} points each of {', '.join(way.name for way in ways)}."
        return Figure(title, caption, (draw_images.strips(rows, key, alt=alt, above=ends),))
    if not subject.signature.numeric_columns:
        header = ("way", *(column.name for column in subject.signature.columns[:MOST_COLUMNS]))
        cells = tuple(
            (f"{way.name} at {way.at[step]:g}", *map(str, way.outputs["categorical"][step][:MOST_COLUMNS]))
            for way in ways
            for step in range(0, STEPS, 2)
        )
        return Table(title, header, cells, caption)
    scale = Scale.of(subject.signature, shown.usual if shown else samples(subject.model, SAMPLES))
    pictures = tuple(
        draw_rows.way(way, scale, f"{key}-{index}", title=way.name, label=way.name if label == "latent" else label)
        for index, way in enumerate(ways)
    )
    said = " Drawn are the numbers that change most, in standard deviations from the median."
    return Figure(title, caption + said, pictures)


def drawn(subject: Subject, shown: Shown | None) -> Section:
    """Show what the decoder makes of draws from the prior."""
    lead = "Latents drawn from N(0, I), decoded: what the model believes rows to be. They should pass for rows."
    outputs = samples(subject.model, SAMPLES)
    if not subject.signature.columns:
        count = 4 * TILES
        images = draw_images.colours_of(outputs["image"][:count])
        rows = [("", images[start : start + TILES * 2]) for start in range(0, count, TILES * 2)]
        strip = draw_images.strips(rows, "samples", alt=f"{count} decoded draws from the prior, as images.")
        caption = "The mean of each pixel, so without the noise that the likelihood adds: smoother than rows are."
        return Section("samples", "Samples", lead, (Figure("Draws from the prior", caption, (strip,)),))
    return Section("samples", "Samples", lead, tuple(_drawn_table(subject, shown, outputs)))


def _drawn_table(subject: Subject, shown: Shown | None, outputs: Arrays) -> list[Part]:
    parts: list[Part] = []
    columns = [
        index for index, column in enumerate(subject.signature.numeric_columns) if column.name not in subject.masked
    ]
    if shown and columns:
        parts.append(_ranges(subject, shown, outputs, columns))
    listed_columns = subject.signature.columns[:MOST_COLUMNS]
    rows = tuple(
        tuple(value(subject.signature, outputs, row, column) for column in listed_columns)
        for row in range(LISTED_SAMPLES)
    )
    header = tuple(column.name for column in listed_columns)
    parts.append(Table("The first samples", header, rows, _first(subject)))
    return parts


def _first(subject: Subject) -> str:
    hidden = len(subject.signature.columns) - MOST_COLUMNS
    return f"The first {MOST_COLUMNS} columns; {hidden:,} more are not listed." if hidden > 0 else ""


def _ranges(subject: Subject, shown: Shown, outputs: Arrays, columns: list[int]) -> Figure:
    scale = Scale.of(subject.signature, shown.usual)
    real, made = scale(shown.usual), scale(outputs)
    chosen = [index for index in columns if np.isfinite(real[:, index]).any()][:MOST_RANGES]
    pictures = [draw_rows.ranges(real, made, scale, "samples", columns=chosen)]
    caption = (
        "The middle nine tenths of normal rows and of decoded samples. Samples are means, without the noise that the "
        "likelihood adds, so theirs are narrower; they should lie in the same place."
        + (f" The first {MOST_RANGES} of {len(columns):,} numbers." if len(columns) > MOST_RANGES else "")
    )
    return Figure("Draws from the prior", caption, tuple(pictures))
