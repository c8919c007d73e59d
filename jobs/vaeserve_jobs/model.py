"""The model of a job: a bundle in this process, or one that a running service has."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaeserve.bundle import Bundle
from vaeserve.client import Client
from vaeserve.errors import ConfigError
from vaeserve.latents import check_latents
from vaeserve.manifest import CalibrationSummary
from vaeserve.messages import Decoded, Encoded, Reconstructed
from vaeserve.scores import Bound, ScoreOptions, Scores, count_samples, draw_noise, interpret, rank_features
from vaeserve.signature import Signature
from vaeserve_jobs.attributions import attributions, attributions_of
from vaeserve_service.runtime import Runtime

Inputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Identity:
    """Which model it is: the manifest's hash holds those of all its files."""

    name: str
    version: str
    manifest_sha256: str


@dataclass(frozen=True)
class Address:
    """Where a model is: a bundle's folder, or the `name` and version, "" for the newest, that a service has it by."""

    bundle: str | None = None
    server: str | None = None
    name: str | None = None
    version: str = ""

    def open(self) -> "LocalModel | ServerModel":
        """Open it; raises ConfigError for neither and for both, BundleError, and what the service does."""
        if self.bundle is not None and self.server is None and self.name is None:
            return LocalModel.open(Path(self.bundle))
        if self.server is not None and self.name is not None and self.bundle is None:
            return ServerModel(self.server, self.name, self.version)
        raise ConfigError("expected either --bundle DIR, or --server HOST:PORT with --model NAME")


class Scored(NamedTuple):
    """The scores of a batch, and where they were asked for its rows' `attributions`, of type `ATTRIBUTIONS`."""

    scores: Scores
    attributions: pa.Array | None = None


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


class Model(Coder, Protocol):
    """A model that computes batches of its signature's inputs, several of them at once."""

    @property
    def identity(self) -> Identity:
        """Which model it is."""
        ...

    @property
    def calibration(self) -> CalibrationSummary:
        """What calibrated it."""
        ...

    def check(self, options: ScoreOptions) -> None:
        """Raise InvalidInputError or OutOfRangeError, naming it, for what the model can't be asked."""
        ...

    def score(self, inputs: Inputs, options: ScoreOptions) -> Scored:
        """Return the scores of a batch."""
        ...

    def reconstruct(self, inputs: Inputs) -> Reconstructed:
        """Return the reconstructions of a batch at its posterior means."""
        ...


class LocalModel:
    """Computes in this process, with the same graphs and the same bits as the service."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._runtime = Runtime.load(bundle)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Load the bundle at `path`; raises BundleError."""
        return cls(Bundle.open(path))

    @property
    def identity(self) -> Identity:
        """Which model it is."""
        return Identity(*self._named, self._bundle.manifest_sha256)

    @property
    def signature(self) -> Signature:
        """What the model takes."""
        return self._bundle.manifest.signature

    @property
    def calibration(self) -> CalibrationSummary:
        """What calibrated it."""
        return self._bundle.manifest.calibration

    def check(self, options: ScoreOptions) -> None:
        """Raise InvalidInputError or OutOfRangeError, naming it, for what the model can't be asked."""
        self._bundle.calibration.rate(options)
        count_samples(self._bundle.noise, options, default=self._bundle.manifest.num_samples)

    def score(self, inputs: Inputs, options: ScoreOptions) -> Scored:
        """Return the scores of a batch."""
        bundle, names = self._bundle, self.signature.features
        count = count_samples(bundle.noise, options, default=bundle.manifest.num_samples)
        noise = draw_noise(bundle.noise, count, seed=options.seed)
        outputs = self._runtime.score(
            inputs, noise, by_feature=options.top_features > 0, iwae=options.bound is Bound.IWAE
        )
        without = replace(options, top_features=0)  # as columns they are made in a tenth of the time
        name, version = self._named
        scores = interpret(outputs, bundle.calibration, without, model=name, version=version, features=names)
        if not options.top_features:
            return Scored(scores)
        ranked = rank_features(outputs["feature_log_likelihood"], bundle.calibration.baseline, options.top_features)
        return Scored(scores, attributions(*ranked, names))

    @property
    def latent_dim(self) -> int:
        """How many numbers a latent has."""
        return self._bundle.manifest.latent_dim

    def encode(self, inputs: Inputs) -> Encoded:
        """Return the posteriors of a batch."""
        outputs = self._runtime.encode(inputs)
        status = outputs["status"].astype(np.int8)
        return Encoded(*self._named, outputs["mean"], outputs["log_variance"], status)

    def reconstruct(self, inputs: Inputs) -> Reconstructed:
        """Return the reconstructions of a batch at its posterior means."""
        outputs = self._runtime.reconstruct(inputs)
        status = outputs.pop("status").astype(np.int8)
        return Reconstructed(*self._named, outputs, status)

    def decode(self, latents: NDArray[np.float32]) -> Decoded:
        """Return the reconstructions of `latents` [rows, latent]; raises as `check_latents` does."""
        return Decoded(*self._named, self._runtime.decode(check_latents(latents, self.latent_dim)))

    @property
    def _named(self) -> tuple[str, str]:
        return self._bundle.manifest.name, self._bundle.version

    def close(self) -> None:
        """Let go of nothing: sessions end with their last reference."""


class ServerModel:
    """Computes through a running service; a job stays with the version that it began with."""

    def __init__(self, target: str, model: str, version: str = "") -> None:
        """Connect to `target` and look the model up; raises as `Client.model` does."""
        self._client = Client(target)
        self._info = self._client.model(model, version=version)

    @property
    def identity(self) -> Identity:
        """Which model it is."""
        return Identity(self._info.name, self._info.version, self._info.manifest_sha256)

    @property
    def signature(self) -> Signature:
        """What the model takes."""
        return self._info.signature

    @property
    def calibration(self) -> CalibrationSummary:
        """What calibrated it."""
        return CalibrationSummary.model_validate_json(json.dumps(self._info.manifest["calibration"]))

    def check(self, options: ScoreOptions) -> None:
        """Leave it to the service, which refuses the first batch for what the model can't be asked."""

    def score(self, inputs: Inputs, options: ScoreOptions) -> Scored:
        """Return the scores of a batch."""
        scores = self._client.score(
            self._info.name,
            _rows(inputs),
            version=self._info.version,
            num_samples=options.num_samples,
            bound=options.bound,
            seed=options.seed,
            false_positive_rate=options.false_positive_rate,
            top_features=options.top_features,
        )
        return Scored(scores, attributions_of(scores) if options.top_features else None)

    @property
    def latent_dim(self) -> int:
        """How many numbers a latent has."""
        return int(self._info.manifest["latent_dim"])

    def encode(self, inputs: Inputs) -> Encoded:
        """Return the posteriors of a batch."""
        return self._client.encode(self._info.name, _rows(inputs), version=self._info.version)

    def reconstruct(self, inputs: Inputs) -> Reconstructed:
        """Return the reconstructions of a batch at its posterior means."""
        return self._client.reconstruct(self._info.name, _rows(inputs), version=self._info.version)

    def decode(self, latents: NDArray[np.float32]) -> Decoded:
        """Return the reconstructions of `latents` [rows, latent]; raises as `check_latents` does."""
        return self._client.decode(self._info.name, latents, version=self._info.version)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _rows(inputs: Inputs) -> NDArray[Any] | Inputs:
    """Return a batch for the client: where there is one input its array, which spares it to ask for the signature."""
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs
