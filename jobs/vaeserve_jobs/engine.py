"""What scores, encodes and decodes a batch of rows: the bundle in this process, or a running service."""

from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle import Bundle
from vaeserve.client import Client
from vaeserve.latents import check_latents
from vaeserve.messages import Decoded, Encoded
from vaeserve.scores import ScoreOptions, Scores, count_samples, draw_noise, interpret
from vaeserve.signature import Signature
from vaeserve_service.runtime import Runtime

Inputs = dict[str, NDArray[Any]]


class Engine(Protocol):
    """A model that scores batches of its signature's inputs."""

    @property
    def signature(self) -> Signature:
        """What the model takes."""
        ...

    def score(self, inputs: Inputs, options: ScoreOptions) -> Scores:
        """Return the scores of a batch."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class Coder(Protocol):
    """A model that encodes batches of its signature's inputs, and decodes latents."""

    @property
    def signature(self) -> Signature:
        """What the model takes, and what its decoder gives."""
        ...

    @property
    def latent_dim(self) -> int:
        """How many numbers a latent has."""
        ...

    def encode(self, inputs: Inputs) -> Encoded:
        """Return the posteriors of a batch."""
        ...

    def decode(self, latents: NDArray[np.float32]) -> Decoded:
        """Return the reconstructions of `latents` [rows, latent]; raises as `check_latents` does."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class LocalEngine:
    """Computes in this process, with the same graphs and the same bits as the service."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._runtime = Runtime.load(bundle)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Load the bundle at `path`; raises BundleError."""
        return cls(Bundle.open(path))

    @property
    def signature(self) -> Signature:
        """What the model takes."""
        return self._bundle.manifest.signature

    def score(self, inputs: Inputs, options: ScoreOptions) -> Scores:
        """Return the scores of a batch."""
        bundle = self._bundle
        count = count_samples(bundle.noise, options, default=bundle.manifest.num_samples)
        noise = draw_noise(bundle.noise, count, seed=options.seed)
        return interpret(
            self._runtime.score(inputs, noise, by_feature=options.top_features > 0),
            bundle.calibration,
            options,
            model=bundle.manifest.name,
            version=bundle.version,
            features=self.signature.features,
        )

    @property
    def latent_dim(self) -> int:
        """How many numbers a latent has."""
        return self._bundle.manifest.latent_dim

    def encode(self, inputs: Inputs) -> Encoded:
        """Return the posteriors of a batch."""
        outputs = self._runtime.encode(inputs)
        status = outputs["status"].astype(np.int8)
        return Encoded(*self._named, outputs["mean"], outputs["log_variance"], status)

    def decode(self, latents: NDArray[np.float32]) -> Decoded:
        """Return the reconstructions of `latents` [rows, latent]; raises as `check_latents` does."""
        return Decoded(*self._named, self._runtime.decode(check_latents(latents, self.latent_dim)))

    @property
    def _named(self) -> tuple[str, str]:
        return self._bundle.manifest.name, self._bundle.version

    def close(self) -> None:
        """Let go of nothing: sessions end with their last reference."""


class ServerEngine:
    """Computes through a running service; a job stays with the version that it began with."""

    def __init__(self, target: str, model: str) -> None:
        """Connect to `target` and look the model up; raises as `Client.model` does."""
        self._client = Client(target)
        self._info = self._client.model(model)

    @property
    def signature(self) -> Signature:
        """What the model takes."""
        return self._info.signature

    def score(self, inputs: Inputs, options: ScoreOptions) -> Scores:
        """Return the scores of a batch."""
        return self._client.score(
            self._info.name,
            _rows(inputs),
            version=self._info.version,
            num_samples=options.num_samples,
            bound=options.bound,
            seed=options.seed,
            false_positive_rate=options.false_positive_rate,
            top_features=options.top_features,
        )

    @property
    def latent_dim(self) -> int:
        """How many numbers a latent has."""
        return int(self._info.manifest["latent_dim"])

    def encode(self, inputs: Inputs) -> Encoded:
        """Return the posteriors of a batch."""
        return self._client.encode(self._info.name, _rows(inputs), version=self._info.version)

    def decode(self, latents: NDArray[np.float32]) -> Decoded:
        """Return the reconstructions of `latents` [rows, latent]; raises as `check_latents` does."""
        return self._client.decode(self._info.name, latents, version=self._info.version)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _rows(inputs: Inputs) -> NDArray[Any] | Inputs:
    """Return a batch for the client: where there is one input its array, which spares it to ask for the signature."""
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs
