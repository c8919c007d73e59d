"""A training step's rows and noise, which depend on the seed, the member and the step alone."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vaeserve_training.config import TrainConfig
from vaeserve_training.features import Rows
from vaeserve_training.feed import Feed
from vaeserve_training.randomness import generator_of

# What a generator is for.
_ORDER, _STEP = range(2)


class Batch(NamedTuple):
    """What one step takes, each with a leading axis of members.

    rows: what is to be explained. seen: what the encoder sees of it. noise: [members, rows, samples, latent].
    """

    rows: Rows
    noise: Tensor
    seen: Rows


class Batches:
    """The batches of a training; of several processes each takes its share of every batch's rows.

    rows: how many a batch has, over all processes.
    """

    def __init__(
        self,
        feed: Feed,
        config: TrainConfig,
        *,
        seed: int,
        latent_dim: int,
        takes_noise: Tensor,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self._feed = feed
        self._objective = config.objective
        self._seed = seed
        self._latent_dim = latent_dim
        self._takes_noise = takes_noise
        self._device = takes_noise.device
        self._mine = slice(process, None, processes)
        self._members = feed.members
        # Every process takes as many, or the mean of their gradients wouldn't be the batch's.
        self.rows = max(min(config.optimizer.batch_rows, len(feed)) // processes, 1) * processes
        self._epoch_steps = max(len(feed) // self.rows, 1)
        self._epoch = -1
        self._order = torch.empty(0)

    def at(self, step: int) -> Batch:
        """Return the batch of a step, counted from 1."""
        rows = self._feed.take(self._positions(step - 1)[:, self._mine])
        features = rows.x.shape[-1]
        generators = [self._generator(_STEP, step, member) for member in range(self._members)]
        noise = self._draw(torch.randn, generators, self._objective.samples, self._latent_dim)
        if self._objective.binarize:
            rows = rows._replace(x=(self._draw(torch.rand, generators, features) < rows.x).to(rows.x.dtype))
        if not self._objective.input_noise:
            return Batch(rows, noise, rows)
        added = self._objective.input_noise * self._takes_noise * self._draw(torch.randn, generators, features)
        return Batch(rows, noise, rows._replace(x=rows.x + added))

    def _positions(self, step: int) -> Tensor:
        """Return the positions of a step's rows, [members, rows]: each epoch visits them in another order."""
        epoch, position = divmod(step, self._epoch_steps)
        if epoch != self._epoch:
            orders = [
                torch.randperm(len(self._feed), generator=self._generator(_ORDER, epoch, member), device=self._device)
                for member in range(self._members)
            ]
            # Processes that outnumber the rows begin again at the first.
            times = -(-self.rows // len(self._feed))
            self._epoch, self._order = epoch, torch.stack(orders).repeat(1, times)
        return self._order[:, position * self.rows : (position + 1) * self.rows]

    def _draw(self, of: Callable[..., Tensor], generators: list[torch.Generator], *shape: int) -> Tensor:
        """Return this process's share of a batch's random numbers, [members, rows, *shape]."""
        draws = [of(self.rows, *shape, generator=generator, device=self._device) for generator in generators]
        return torch.stack(draws)[:, self._mine]

    def _generator(self, what: int, when: int, member: int) -> torch.Generator:
        return generator_of(self._device, self._seed, what, when, member)
