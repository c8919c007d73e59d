"""What a weighting of the KL makes of a model, in figures of held-out rows."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaeserve.latents import prior_draws
from vaeserve_training.collapse import usage
from vaeserve_training.evaluate import antithetic
from vaeserve_training.features import ImageFeatures, Inputs
from vaeserve_training.objective import bounds
from vaeserve_training.prior import StandardNormal
from vaeserve_training.randomness import generator_of
from vaeserve_training.sweep.aggregate import coverage
from vaeserve_training.sweep.neighbours import Space
from vaeserve_training.sweep.realism import realism
from vaeserve_training.sweep.yardstick import Yardstick
from vaeserve_training.vae import VAE, Posterior

# Noise points of the bounds.
SAMPLES = 64
ROWS_AT_ONCE = 128
# Straight ways between the codes of two held-out rows each, and latents on each, its ends among them.
WAYS = 200
STEPS = 11
# Ways at once, for what is decoded has as many features as an image has pixels.
LATENTS_AT_ONCE = 4096


@dataclass(frozen=True)
class Measurement:
    """Figures of the best member under N(0, I), on normal rows held out for calibration and test.

    A figure that a deterministic autoencoder has no meaning for, or the rows none, is None.

    elbo, log_likelihood, kl: with the encoder's posterior, nats a row; iwae: the bound of `SAMPLES` points.
    active_units, mutual_information: see `Usage`.
    centre, spread, overlap, held_out_log_density, prior_log_density, emptiness: see `Coverage`.
    reconstruction_error: the root mean square of a feature's error, in standard deviations of a table's columns and
    intensities of images from 0 to 1; the decoder's mean at the posterior's.
    explained: 1 less the squared error's share of the rows' squared distance from the training rows' mean.
    precision, recall, sample_quality: see `Realism`, of draws from p(z) and then p(x|z), with all its noise.
    way_remoteness: how far what is decoded in the middle third of a straight way between two rows' codes lies from its
    nearest training row, over how far held-out rows do; prior_remoteness: the same of what is decoded at draws from
    N(0, I). Means.
    """

    latent_dim: int
    elbo: float | None
    log_likelihood: float
    kl: float | None
    iwae: float | None
    active_units: int | None
    mutual_information: float | None
    centre: float | None
    spread: float | None
    overlap: float | None
    held_out_log_density: float | None
    prior_log_density: float | None
    emptiness: float | None
    reconstruction_error: float
    explained: float
    precision: float
    recall: float
    sample_quality: float
    way_remoteness: float | None
    prior_remoteness: float | None


class Decoder:
    """A model's decoder, from latents [..., latent] to points of a space [..., width]."""

    def __init__(self, vae: VAE, space: Space) -> None:
        self._vae = vae
        self._space = space

    def __call__(self, z: Tensor) -> Tensor:
        """Return what the model expects at latents: the mean of p(x|z), of categories the likeliest."""
        parts = z.flatten(0, -2).split(LATENTS_AT_ONCE)
        x = torch.cat([self._vae.likelihood.mean(self._vae.decode(part)) for part in parts])
        return self._points(x).reshape(*z.shape[:-1], -1)

    def draw(self, z: Tensor, generator: torch.Generator, *, like: Inputs) -> Tensor:
        """Draw from p(x|z) at latents [rows, latent]; what is missing in the rows of `like` is missing there too."""
        return self._points(self._vae.likelihood.sample(self._vae.decode(z), generator), like=like)

    def _points(self, x: Tensor, *, like: Inputs | None = None) -> Tensor:
        return self._space.points(self._vae.features.inverse(x), like=like)


@torch.no_grad()
def measure(vae: VAE, yardstick: Yardstick, *, seed: int) -> Measurement:
    """Measure a trained model. The same model, rows and seed give the same figures."""
    vae = copy.deepcopy(vae)
    vae.prior = StandardNormal()
    decoder = Decoder(vae, yardstick.space)
    generator = generator_of(torch.device("cpu"), seed)
    points = yardstick.points
    held_out = encode(vae, yardstick.held_out)
    draws = torch.from_numpy(prior_draws(len(points), vae.latent_dim, seed=seed))
    error = (decoder(held_out.mean) - points).double().square().sum()
    total = (points - yardstick.train_points.mean(0)).double().square().sum()
    drawn = decoder.draw(draws, generator, like=yardstick.held_out)
    real = realism(drawn, _as_drawn(vae, points, generator))
    on_ways = decoder(random_ways(held_out.mean, generator))  # (ways, steps, width)
    middle = yardstick.remoteness(on_ways[:, STEPS // 3 : -(STEPS // 3)])
    return Measurement(
        latent_dim=vae.latent_dim,
        **_bounds(vae, yardstick.held_out, generator),
        **_latents(vae, encode(vae, yardstick.train), held_out, draws=draws, generator=generator),
        reconstruction_error=float((error / points.numel()).sqrt()),
        explained=float(1 - error / total) if total else 0.0,
        precision=real.precision,
        recall=real.recall,
        sample_quality=real.quality,
        way_remoteness=_number(middle.mean()),
        prior_remoteness=_number(yardstick.remoteness(decoder(draws)).mean()),
    )


def encode(vae: VAE, inputs: Inputs) -> Posterior:
    """Return the posteriors of raw rows, a part that fits in memory at a time."""
    parts = [vae.encode(vae.features(some)) for some in _chunks(inputs, LATENTS_AT_ONCE)]
    return Posterior(*(torch.cat(part) for part in zip(*parts, strict=True)))


def way(start: Tensor, end: Tensor, *, steps: int = STEPS) -> Tensor:
    """Return latents evenly along the lines from `start` to `end`, both [ways, latent]: [ways, steps, latent]."""
    return torch.lerp(start[:, None], end[:, None], torch.linspace(0, 1, steps, dtype=start.dtype)[:, None])


def random_ways(codes: Tensor, generator: torch.Generator) -> Tensor:
    """Return `WAYS` ways between codes [rows, latent] drawn at random, [ways, steps, latent]."""
    ends = torch.randint(len(codes), (2, WAYS), generator=generator)
    return way(codes[ends[0]], codes[ends[1]])


def _bounds(vae: VAE, inputs: Inputs, generator: torch.Generator) -> dict[str, Any]:
    """Return the mean bounds of raw rows and their parts, nats."""
    totals, rows = torch.zeros(4, dtype=torch.float64), 0
    for some in _chunks(inputs, ROWS_AT_ONCE):
        seen = vae.features(some)
        noise = antithetic(SAMPLES, len(seen.x), vae.latent_dim, generator=generator).transpose(0, 1)
        found = bounds(vae, seen, noise)
        totals += torch.stack([found.elbo, found.log_likelihood, found.kl, found.iwae]).double().sum(1)
        rows += len(seen.x)
    elbo, log_likelihood, kl, iwae = (totals / rows).tolist()
    if vae.point:
        return {"elbo": None, "log_likelihood": log_likelihood, "kl": None, "iwae": None}
    return {"elbo": elbo, "log_likelihood": log_likelihood, "kl": kl, "iwae": iwae}


def _latents(
    vae: VAE, train: Posterior, held_out: Posterior, *, draws: Tensor, generator: torch.Generator
) -> dict[str, Any]:
    """Return how posteriors lie to the prior; of points, which have no density, nothing."""
    if vae.point:
        return dict.fromkeys(_OF_POSTERIORS)
    noise = torch.randn(held_out.mean.shape, generator=generator)
    used = usage(held_out, noise)
    figures = coverage(train, held_out, noise=noise, draws=draws)._asdict()
    return figures | {"active_units": used.active_units, "mutual_information": used.mutual_information}


_OF_POSTERIORS = (
    "active_units", "mutual_information", "centre", "spread", "overlap", "held_out_log_density", "prior_log_density",
    "emptiness",
)  # fmt: skip


def _as_drawn(vae: VAE, points: Tensor, generator: torch.Generator) -> Tensor:
    """Return rows as the model takes them for drawn: pixels that are probabilities of bits become bits."""
    if vae.likelihood.name == "bernoulli" and isinstance(vae.features, ImageFeatures):
        return torch.bernoulli(points, generator=generator)
    return points


def _chunks(inputs: Inputs, rows: int) -> Iterator[dict[str, Tensor]]:
    count = len(next(iter(inputs.values())))
    return ({name: part[start : start + rows] for name, part in inputs.items()} for start in range(0, count, rows))


def _number(value: Tensor) -> float | None:
    return float(value) if math.isfinite(value) else None
