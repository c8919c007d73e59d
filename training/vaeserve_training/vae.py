"""The variational autoencoder: encoder q(z|x), decoder p(x|z), prior N(0, I).

Source: Kingma and Welling, Auto-Encoding Variational Bayes, 2014.
"""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from vaeserve.signature import Signature
from vaeserve_training.config import ModelConfig
from vaeserve_training.features import Features, ImageFeatures, Inputs, TableFeatures, features_of
from vaeserve_training.likelihoods import Bernoulli, Gaussian, Likelihood
from vaeserve_training.networks import mlp

# What the encoder sees of a scaled value: past this, an outlier is far enough.
INPUT_RANGE = 10.0
LOG_VARIANCE_RANGE = (-14.0, 4.0)
# The least learned scale: of a standardized column, and of intensities in [0, 1].
TABLE_SCALE_FLOOR = math.exp(-1)
IMAGE_SCALE_FLOOR = math.exp(-3)


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
    """Features, encoder, decoder and likelihood."""

    def __init__(self, features: Features, likelihood: Likelihood, *, latent_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.features = features
        self.likelihood = likelihood
        self.encoder = mlp([features.features, *hidden, 2 * latent_dim])
        self.decoder = mlp([latent_dim, *reversed(hidden), features.features])

    @classmethod
    def build(cls, signature: Signature, config: ModelConfig) -> Self:
        """Return an untrained model for `signature`."""
        features = features_of(signature)
        latent_dim = config.latent_dim or min(max(round(0.75 * features.features), 4), 32)
        likelihood = _likelihood(features, config.likelihood)
        return cls(features, likelihood, latent_dim=latent_dim, hidden=config.hidden)

    @property
    def density(self) -> str:
        """The values whose density the likelihood gives."""
        if isinstance(self.features, ImageFeatures):
            return "pixel intensities in [0, 1]"
        return "values as they are" if isinstance(self.likelihood, Bernoulli) else "standard-scaled values"

    def fit_features(self, inputs: Inputs) -> None:
        """Set what the features learn from the training rows; Bernoulli takes a table's values as they are."""
        if isinstance(self.features, TableFeatures) and not isinstance(self.likelihood, Bernoulli):
            self.features.fit(inputs["numeric"])

    def encode(self, x: Tensor) -> Posterior:
        """Return the posterior of scaled rows `x` [rows, features]."""
        mean, log_variance = self.encoder(x.clamp(-INPUT_RANGE, INPUT_RANGE)).chunk(2, dim=-1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    def decode(self, z: Tensor) -> Tensor:
        """Return the likelihood's output [..., features] for latents `z` [..., latent]."""
        output: Tensor = self.decoder(z)
        return output


def _likelihood(features: Features, name: str) -> Likelihood:
    if name == "bernoulli":
        return Bernoulli()
    if isinstance(features, ImageFeatures):
        return Gaussian(1, floor=IMAGE_SCALE_FLOOR)
    return Gaussian(features.features, floor=TABLE_SCALE_FLOOR)
