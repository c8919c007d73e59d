"""The variational autoencoder: encoder q(z|x), decoder p(x|z), prior p(z).

Source: Kingma and Welling, Auto-Encoding Variational Bayes, 2014.
"""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from vaeserve.signature import Signature
from vaeserve_training.config import ModelConfig, Scaling
from vaeserve_training.features import Features, Rows, TableFeatures, features_of
from vaeserve_training.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    FixedGaussian,
    Gaussian,
    Likelihood,
    Mixed,
    StudentT,
)
from vaeserve_training.networks import decoder, encoder
from vaeserve_training.prior import Prior, StandardNormal

LOG_VARIANCE_RANGE = (-14.0, 4.0)
# The likelihoods of numbers from 0 to 1, which are taken as they are.
UNIT = ("bernoulli", "continuous_bernoulli")
# The least learned scale: of a standardized column, of intensities in [0, 1], and of their levels.
TABLE_SCALE_FLOOR = math.exp(-1)
IMAGE_SCALE_FLOOR = math.exp(-2.25)
LEVELS_SCALE_FLOOR = math.exp(-6)


class Posterior(NamedTuple):
    """q(z|x) = N(mean, diag exp(log_variance)), both [rows, latent]."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return `mean + sigma * noise` [rows, samples, latent], through which gradients flow (reparameterization).

        noise: standard normal, [samples, latent] for all rows or [rows, samples, latent].
        """
        return self.mean[:, None] + torch.exp(0.5 * self.log_variance)[:, None] * noise


class VAE(nn.Module):
    """Features, encoder, decoder, likelihood and prior.

    point: the posterior is its mean alone, which makes a deterministic autoencoder.
    score_sigma: the posterior's standard deviation in scoring; 0 takes the encoder's.
    """

    def __init__(
        self,
        features: Features,
        likelihood: Likelihood,
        prior: Prior,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        point: bool = False,
        score_sigma: float = 0.0,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.point = point
        self.score_sigma = score_sigma
        self.features = features
        self.likelihood = likelihood
        self.prior = prior
        self.encoder = encoder
        self.decoder = decoder

    @classmethod
    def build(cls, signature: Signature, config: ModelConfig, *, scaling: Scaling) -> Self:
        """Return an untrained model of resolved settings, under the standard normal prior."""
        assert config.latent_dim is not None  # noqa: S101 - resolved
        assert config.hidden is not None  # noqa: S101 - resolved
        assert config.network != "auto"  # noqa: S101 - resolved
        features = features_of(signature, scaling, as_is=config.likelihood in UNIT)
        likelihood = likelihood_of(signature, config.likelihood)
        image = None if signature.columns else signature.inputs[0].shape[1:]
        shape = (image[0], image[1], image[2]) if image else None
        return cls(
            features,
            likelihood,
            StandardNormal(),
            encoder=encoder(
                config.network, inputs=features.width, outputs=2 * config.latent_dim, hidden=config.hidden, shape=shape
            ),
            decoder=decoder(
                config.network, inputs=config.latent_dim, outputs=likelihood.outputs, hidden=config.hidden, shape=shape
            ),
            latent_dim=config.latent_dim,
            point=config.posterior == "point",
            score_sigma=config.score_sigma,
        )

    @property
    def density(self) -> str:
        """The values whose density the likelihood gives."""
        if not isinstance(self.features, TableFeatures):
            return "pixel intensities in [0, 1]"
        numbers = "values as they are" if self.features.as_is else "standard-scaled values"
        return f"{numbers}, and probabilities of categories" if "categorical" in self.likelihoods else numbers

    @property
    def likelihoods(self) -> tuple[str, ...]:
        """The likelihood's name, or those of a mixed table's parts."""
        if isinstance(self.likelihood, Mixed):
            return tuple(part.name for part in self.likelihood.parts if isinstance(part, Likelihood))
        return (self.likelihood.name,)

    def encode(self, rows: Rows) -> Posterior:
        """Return the posterior of `rows`."""
        output = self.encoder(self.features.network_input(rows)).to(rows.x.dtype)
        mean, log_variance = output.chunk(2, dim=-1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    def scoring(self, posterior: Posterior) -> Posterior:
        """Return the posterior that rows are scored with.

        Any density makes a lower bound. One of a fixed width near the mean says how well a row is explained at its
        latents, without the width that the encoder was left free to give to latents that say nothing.
        """
        if not self.score_sigma:
            return posterior
        return Posterior(posterior.mean, torch.full_like(posterior.log_variance, 2 * math.log(self.score_sigma)))

    def sample(self, posterior: Posterior, noise: Tensor) -> Tensor:
        """Return latents [rows, samples, latent] of the posterior, or its mean where that is all there is."""
        return posterior.mean[:, None] + torch.zeros_like(noise) if self.point else posterior.sample(noise)

    def decode(self, z: Tensor) -> Tensor:
        """Return the likelihood's output [..., outputs] for latents `z` [..., latent]."""
        # As rows of a matrix, for whose product with the weights a graph has one operator that adds the bias too.
        output: Tensor = self.decoder(z.reshape(-1, self.latent_dim))
        return output.to(z.dtype).reshape(*z.shape[:-1], self.likelihood.outputs)


def likelihood_of(signature: Signature, name: str) -> Likelihood:
    """Return the likelihood called `name` of a signature's features; a table's columns each get their kind's."""
    if not signature.columns:
        return _single(name, math.prod(signature.inputs[0].shape[1:]), floor=IMAGE_SCALE_FLOOR)
    groups: dict[str, list[int]] = {}
    for index, column in enumerate(signature.columns):
        kind = "binary" if column.kind == "numeric" and name == "bernoulli" else column.kind
        groups.setdefault(kind, []).append(index)
    parts: list[tuple[list[int], Likelihood]] = []
    if "numeric" in groups:
        parts.append((groups["numeric"], _single(name, len(groups["numeric"]), floor=TABLE_SCALE_FLOOR)))
    if "binary" in groups:
        parts.append((groups["binary"], Bernoulli(len(groups["binary"]))))
    if "categorical" in groups:
        sizes = [len(signature.columns[index].categories) for index in groups["categorical"]]
        parts.append((groups["categorical"], Categorical(sizes)))
    return parts[0][1] if len(parts) == 1 else Mixed(parts)


def _single(name: str, features: int, *, floor: float) -> Likelihood:
    """Return the likelihood called `name`, its learned scales at least `floor`."""
    match name:
        case "student_t":
            return StudentT(features, floor=floor)
        case "gaussian":
            return Gaussian(features, floor=floor)
        case "gaussian_fixed":
            return FixedGaussian(features)
        case "bernoulli":
            return Bernoulli(features)
        case "continuous_bernoulli":
            return ContinuousBernoulli(features)
        case "discretized_logistic":
            return DiscretizedLogistic(features, floor=LEVELS_SCALE_FLOOR, shared=True)
    raise ValueError(f"{name}: not a likelihood of numbers or pixels")
