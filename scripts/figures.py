"""Make the figures of docs/concepts.md from real runs, and fill in its numbers.

Sweeps of `digits` come first, into `.figures/`, where they are kept: a second call goes on with them. With
`--fashion-mnist DIR`, a folder with `train-images-idx3-ubyte.gz`, those of FashionMNIST are made too; without it they
stay as they are.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.patches import Circle, Ellipse
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from vaeserve_training.features import Rows, tensors_of
from vaeserve_training.gradients import Gradients, reparameterized, score_function
from vaeserve_training.objective import bounds
from vaeserve_training.report.picture import Picture, picture
from vaeserve_training.report.style import (
    ANOMALOUS,
    INK,
    MUTED,
    NORMAL,
    SERIES,
    THIRD,
    blank,
    legend_above,
    panel,
    styled,
)
from vaeserve_training.run import Run
from vaeserve_training.sums import total
from vaeserve_training.vae import VAE, Posterior

ROOT = Path(__file__).parent.parent
SWEEPS = ROOT / ".figures"
FIGURES = ROOT / "docs" / "figures"
MEASURED = FIGURES / "measured.json"
CONCEPTS = ROOT / "docs" / "concepts.md"

# The sweeps, each by the words that `vaeserve sweep` takes; `plane` has a latent space that can be looked at whole.
DIGITS = {
    "digits": ["digits", "--compare", "autoencoder"],
    "plane": [
        "digits", "--compare", "autoencoder", "--betas", "0.001,0.1,1,20", "--set", "model.latent_dim=2",
        "--set", "optimizer.max_steps=6000", "--set", "optimizer.patience=20",
    ],
}  # fmt: skip
FASHION = ["--betas", "0.01,1,4,10,100", "--set", "optimizer.max_steps=2000"]
# Which of a sweep's own pictures the page has.
TAKEN = {
    "digits": [
        "rate-distortion", "shares", "ways", "beta-0-01-rows", "beta-1-rows", "beta-20-rows",
        "autoencoder-rows", "beta-1-plane", "autoencoder-plane",
    ],
    "plane": ["effects", "beta-1-grid", "autoencoder-grid"],
    "fashion": ["rate-distortion", "beta-0-01-rows", "beta-4-rows", "beta-100-rows"],
}  # fmt: skip

# Draws whose gradients are compared, and those of them that are shown.
DRAWS = 20_000
# Digits in a picture of codes, and those of them whose posterior is drawn.
CODES = 120
ELLIPSES = 30
# A row to follow through the model.
FOLLOWED = 3

# `<!--=sweep/row/figure:format-->text<!--/-->`, and a sweep's table between lines of its own.
_NUMBER = re.compile(r"(<!--=([^:>]+):([^>]*?)-->)(.*?)(<!--/-->)")
_TABLE = re.compile(r"(<!--table ([\w-]+)-->\n)(.*?)(<!--/-->)", re.DOTALL)


def main() -> None:
    """Run the sweeps, draw the figures, and fill in the page."""
    parser = argparse.ArgumentParser(description="Make the figures of docs/concepts.md, and fill in its numbers.")
    parser.add_argument("--fashion-mnist", type=Path, metavar="DIR", help="FashionMNIST's folder of idx files.")
    folder = parser.parse_args().fashion_mnist
    sweeps = dict(DIGITS)
    if folder:
        sweeps["fashion"] = [str(folder / "train-images-idx3-ubyte.gz"), *FASHION]
    for name, words in sweeps.items():
        command = [sys.executable, "-m", "vaeserve", "sweep", *words, "--out", str(SWEEPS / name)]
        subprocess.run([*command, "--device", "cpu", "--resume"], check=True)  # noqa: S603 - our own command
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    measured |= {name: measured_in(SWEEPS / name) for name in sweeps}
    gradients, estimates = compare_estimators(SWEEPS / "digits")
    measured["gradients"] = gradients
    pictures = [
        pipeline(SWEEPS / "plane"),
        *(latents(SWEEPS / "plane", name) for name in ("beta-0.001", "beta-0.1", "beta-1", "beta-20", "autoencoder")),
        estimators(estimates),
        variances(estimates),
    ]
    FIGURES.mkdir(exist_ok=True)
    for name in sweeps:
        for taken in TAKEN[name]:
            (FIGURES / f"{name}-{taken}.svg").write_bytes((SWEEPS / name / "report" / f"{taken}.svg").read_bytes())
    for made in pictures:
        (FIGURES / f"{made.name}.svg").write_text(made.svg_file)
    MEASURED.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    CONCEPTS.write_text(filled(CONCEPTS.read_text(), measured))


def measured_in(folder: Path) -> dict[str, Any]:
    """Return the figures of a sweep's rows by their names, and its table."""
    said = json.loads((folder / "sweep.json").read_text())
    rows = {row["name"]: row for row in said["rows"]}
    reach = {"sample_quality": said["sample_quality_of_training_rows"]}
    return rows | {"training-rows": reach, "table": (folder / "table.md").read_text()}


def filled(page: str, measured: dict[str, Any]) -> str:
    """Return a page with its numbers and tables as they were measured; raises KeyError for what wasn't."""
    page = _NUMBER.sub(lambda match: f"{match[1]}{format(_at(measured, match[2]), match[3])}{match[5]}", page)
    return _TABLE.sub(lambda match: f"{match[1]}\n{measured[match[2]]['table']}\n{match[4]}", page)


def _at(measured: dict[str, Any], path: str) -> Any:
    found: Any = measured
    for part in path.split("/"):
        found = found[part]
    return found


class Held:
    """A sweep's model, and the normal rows that were held out of its training, with the digits they show."""

    def __init__(self, sweep: Path, name: str) -> None:
        run = Run.open(sweep / "runs" / name)
        test = run.test()
        assert test.anomalous is not None  # noqa: S101 - digits have labels
        images = np.concatenate([test[~test.anomalous].inputs["image"], run.calibration().inputs["image"]])
        self.vae: VAE = run.ensemble().member
        self.rows: Rows = self.vae.features(tensors_of(test.signature, {"image": images}))
        self.images: NDArray[np.uint8] = images[:, 0]
        known = load_digits()
        # As vaeserve.source reads them: 0 to 16 become 0 to 255.
        scaled = np.round(known.images * 255 / 16).astype(np.uint8)
        digits = {image.tobytes(): int(digit) for image, digit in zip(scaled, known.target, strict=True)}
        self.digits = [digits[image.tobytes()] for image in self.images]


@torch.no_grad()
@styled
def pipeline(sweep: Path) -> Picture:
    """Draw one held-out row's way through a model of two latent dimensions, with what it costs."""
    held = Held(sweep, "beta-1")
    posterior = held.vae.encode(held.rows)
    one = Posterior(*(part[FOLLOWED : FOLLOWED + 1] for part in posterior))
    noise = torch.randn(512, 2, generator=torch.Generator().manual_seed(1))
    z = one.sample(noise)[0, 0]
    image = held.vae.features.inverse(held.vae.likelihood.mean(held.vae.decode(z[None])))["image"][0, 0]
    found = bounds(held.vae, held.rows.pick(slice(FOLLOWED, FOLLOWED + 1)), noise)
    figure = blank(width=760, height=270)
    seen, space, rebuilt = figure.subplots(1, 3, width_ratios=[1, 1.5, 1])
    for axes, shown, title in ((seen, held.images[FOLLOWED], "row x"), (rebuilt, image, "p(x|z), its mean")):
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="none")
        axes.set(xticks=[], yticks=[], title=title)
        axes.grid(visible=False)
    for radius in (1, 2):
        space.add_patch(Circle((0, 0), radius, fill=False, color=MUTED, linestyle="--"))
    (x, y), deviation = one.mean[0].tolist(), torch.exp(0.5 * one.log_variance[0]).tolist()
    space.plot(*posterior.mean[:200].T, ".", color=MUTED, alpha=0.4, markersize=3)
    for width in (1, 2):
        ellipse = Ellipse(
            (x, y), 2 * width * deviation[0], 2 * width * deviation[1], fill=False, color=NORMAL, linewidth=1.8
        )
        space.add_patch(ellipse)
    space.plot(*z.tolist(), "*", color=ANOMALOUS, markersize=11)
    space.annotate(
        "z, a draw", z.tolist(), xytext=(0, -44), textcoords="offset points", color=INK, ha="center",
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8, "shrinkB": 5},
    )  # fmt: skip
    space.set(xlim=(x - 0.8, x + 0.8), ylim=(y - 0.8, y + 0.8), aspect="equal", ylabel="latent 2")
    space.set_xlabel(f"latent 1\nKL {float(found.kl):.1f} nats")
    space.set_title("q(z|x) over the prior")
    seen.set_xlabel(f"a written {held.digits[FOLLOWED]}\nELBO {float(found.elbo):.1f} nats")
    rebuilt.set_xlabel(f"of every pixel a density\nlog p(x|z) {float(found.log_likelihood):.1f} nats")
    alt = (
        f"A written {held.digits[FOLLOWED]}, its posterior as an ellipse among other rows' codes, a draw of it, and "
        f"the image decoded there; KL {float(found.kl):.1f} and log-likelihood {float(found.log_likelihood):.1f} nats."
    )
    return picture(figure, "pipeline", alt=alt)


@torch.no_grad()
@styled
def latents(sweep: Path, name: str) -> Picture:
    """Draw held-out rows' codes in a latent space of two dimensions, each as the digit that the row shows."""
    held = Held(sweep, name)
    mean, log_variance = held.vae.encode(held.rows)
    deviations = torch.zeros_like(mean) if held.vae.point else torch.exp(0.5 * log_variance)
    figure, axes = panel(height=350)
    for index, (digit, (x, y)) in enumerate(zip(held.digits[:CODES], mean.tolist(), strict=False)):
        colour = SERIES[digit % len(SERIES)]
        axes.text(x, y, str(digit), color=colour, fontsize=10, ha="center", va="center", clip_on=True)
        if index < ELLIPSES:
            across, up = (2 * deviations[index]).tolist()
            axes.add_patch(Ellipse((x, y), across, up, fill=False, color=colour, linewidth=0.8))
    for radius in (1, 2):
        axes.add_patch(Circle((0, 0), radius, fill=False, color=MUTED, linestyle="--"))
    reach = 1.08 * max(3.0, float(mean.abs().quantile(0.995)))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="latent 1", ylabel="latent 2")
    said = "autoencoder" if held.vae.point else name.replace("-", " ")
    axes.set_title(said)
    alt = f"{said}: digits at their codes in the latent plane, with ellipses for posteriors, over circles of the prior."
    return picture(figure, f"latents-{name.replace('.', '-')}", alt=alt)


def compare_estimators(sweep: Path) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Estimate the gradient of E_q[log p(x|z)] in a held-out row's mean, each way; return figures and estimates.

    The estimates are [draws, latent], nats a unit of the mean, of the units in the order of how much they say.
    """
    held = Held(sweep, "beta-1")
    row = held.rows.pick(slice(FOLLOWED, FOLLOWED + 1))
    with torch.no_grad():
        posterior = held.vae.encode(row)
    noise = torch.randn(DRAWS, 1, held.vae.latent_dim, generator=torch.Generator().manual_seed(0))

    def log_likelihood(z: Tensor) -> Tensor:
        return total(held.vae.likelihood.log_density(row.x, held.vae.decode(z)))  # (draws, rows)

    ways: dict[str, Gradients] = {
        "reparameterized": reparameterized(log_likelihood, posterior, noise),
        "score function": score_function(log_likelihood, posterior, noise),
        "with baseline": score_function(log_likelihood, posterior, noise, baseline=True),
    }
    order = posterior.log_variance[0].argsort()
    estimates = {name: gradients.mean[:, 0, order] for name, gradients in ways.items()}
    variance = {name: float(estimate.var(0).sum()) for name, estimate in estimates.items()}
    least = variance["reparameterized"]
    return {
        "score_function": variance["score function"] / least,
        "baseline": variance["with baseline"] / least,
        "draws": DRAWS,
    }, estimates


@styled
def estimators(estimates: dict[str, Tensor]) -> Picture:
    """Draw the estimates of one coordinate of the gradient, one a draw."""
    figure, axes = panel(height=290)
    reach = 3 * float(estimates["with baseline"][:, 0].std())
    edges = np.linspace(-reach, reach, 81)
    for (name, estimate), colour in zip(estimates.items(), (NORMAL, ANOMALOUS, THIRD), strict=True):
        axes.hist(
            estimate[:, 0].numpy(),
            edges.tolist(),
            density=True,
            histtype="step",
            color=colour,
            label=name,
            linewidth=1.6,
        )
    mean = float(estimates["reparameterized"][:, 0].mean())
    axes.axvline(mean, color=MUTED, linestyle=":", label="their mean")
    axes.set(xlabel="one draw's gradient (nats a unit)", ylabel="density", yscale="log")
    axes.yaxis.set_major_formatter(_plainly)
    legend_above(axes)
    alt = "Histograms of one draw's gradient: narrow by the reparameterized draw, wide by the score function."
    return picture(figure, "gradient-draws", alt=alt)


@styled
def variances(estimates: dict[str, Tensor]) -> Picture:
    """Draw the variance of one draw's gradient in each latent unit."""
    figure, axes = panel(height=290)
    for (name, estimate), colour, mark in zip(estimates.items(), (NORMAL, ANOMALOUS, THIRD), "o^s", strict=True):
        axes.plot(range(1, estimate.shape[1] + 1), estimate.var(0), mark, color=colour, label=name)
    axes.set(xlabel="latent unit, by how much it says", ylabel="variance (nats² a unit²)", yscale="log")
    axes.yaxis.set_major_formatter(_plainly)
    legend_above(axes)
    alt = "The variance of one draw's gradient in each latent unit, on a logarithmic axis, for the three estimators."
    return picture(figure, "gradient-variances", alt=alt)


def _plainly(value: float, _: float) -> str:
    return f"{value:g}"


if __name__ == "__main__":
    main()
