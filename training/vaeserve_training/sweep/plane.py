"""A plane through the latent space that shows as much of the codes as two axes can."""

from typing import Self

import torch
from torch import Tensor

from vaeserve_training.vae import Posterior

# How many of the codes' standard deviations the cells reach from their mean.
REACH = 2.5


class Plane:
    """A plane through the codes' mean, `axes` orthonormal, [2, latent]; `centre`: [latent].

    Of two latent dimensions it is the latent space itself. N(0, I) looks in it as it does in any: a rotation changes
    nothing of it.
    """

    def __init__(self, centre: Tensor, axes: Tensor) -> None:
        self.centre = centre
        self.axes = axes

    @classmethod
    def of(cls, codes: Tensor) -> Self:
        """Return the plane of the two principal components of codes [rows, latent]."""
        latent = codes.shape[1]
        if latent <= 2:
            return cls(torch.zeros(latent), torch.eye(2, latent))
        centre = codes.mean(0)
        directions = torch.linalg.svd(codes - centre, full_matrices=True).Vh[:2]
        # A direction's sign is the algorithm's whim.
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        return cls(centre, directions * largest.sign())

    def coordinates(self, z: Tensor) -> Tensor:
        """Return where latents [..., latent] lie in the plane, from the latent space's origin, [..., 2]."""
        return z @ self.axes.T

    def deviations(self, posterior: Posterior) -> Tensor:
        """Return the posteriors' standard deviations along the axes, [rows, 2]."""
        return (torch.exp(posterior.log_variance) @ self.axes.T.square()).sqrt()

    def extent(self, codes: Tensor) -> Tensor:
        """Return the least and the greatest coordinate along each axis that are worth a look, [2 axes, 2]."""
        coordinates = self.coordinates(codes)
        middle, reach = coordinates.mean(0), REACH * coordinates.std(0)
        reach = torch.where(reach > 0, reach, torch.ones_like(reach))
        return torch.stack([middle - reach, middle + reach], dim=1)

    def cells(self, extent: Tensor, count: int) -> Tensor:
        """Return the latents in the middle of `count` x `count` cells of the plane, [count, count, latent].

        The first axis runs with the plane's second, as an image's rows do.
        """
        middles = (torch.arange(count) + 0.5) / count
        across, up = (low + (high - low) * middles for low, high in extent)
        coordinates = torch.stack(torch.meshgrid(across, up, indexing="xy"), dim=-1)  # (count, count, 2)
        origin = self.coordinates(self.centre)
        return self.centre + (coordinates - origin) @ self.axes
