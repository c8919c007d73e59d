"""Members trained side by side, whose mean bound is the score."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Self

from torch import Tensor, nn

from vaeserve.signature import Signature
from vaeserve_training.config import ModelConfig
from vaeserve_training.features import Inputs
from vaeserve_training.objective import Bounds, bounds, mean_bounds
from vaeserve_training.prior import Exemplars
from vaeserve_training.vae import VAE


class Ensemble(nn.Module):
    """One member or more, of one shape.

    best: the member with the best held-out bound, which encodes and decodes for all.
    num_samples: noise points of a score.
    """

    def __init__(self, members: Sequence[VAE], *, best: int = 0, num_samples: int = 2) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.best = best
        self.num_samples = num_samples

    @classmethod
    def build(cls, signature: Signature, config: ModelConfig, *, size: int, best: int = 0) -> Self:
        """Return an untrained ensemble of resolved settings; the members take `config.scaling` in turn."""
        scalings = cycle(config.scaling)
        members = [VAE.build(signature, config, scaling=next(scalings)) for _ in range(size)]
        return cls(members, best=best, num_samples=config.num_samples)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[VAE]:
        return iter(self.members)  # type: ignore[arg-type]

    @property
    def member(self) -> VAE:
        """The best member."""
        member: VAE = self.members[self.best]  # type: ignore[assignment]
        return member

    def score(self, inputs: Inputs, noise: Tensor) -> Bounds:
        """Return the mean of the bounds that the members score raw `inputs` with, at `noise` [samples, latent]."""
        return mean_bounds([bounds(vae, vae.features(inputs), noise, scoring=True) for vae in self])

    def bounds(self, inputs: Inputs, noise: Tensor) -> Bounds:
        """Return the mean of the members' bounds of raw `inputs` with the encoders' posteriors.

        noise: [samples, latent] for all rows or [rows, samples, latent].
        """
        return mean_bounds([bounds(vae, vae.features(inputs), noise) for vae in self])

    def status(self, inputs: Inputs) -> Tensor:
        """Return each row's `RowStatus`, int32 [rows]; the members agree on it."""
        return self.member.features.status(inputs)

    def reserve_prior(self, config: ModelConfig) -> None:
        """Give the members the prior that `config` names, its values yet to be loaded."""
        if config.prior == "exemplars":
            for vae in self:
                vae.prior = Exemplars(vae.latent_dim, config.exemplars)
