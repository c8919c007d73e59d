"""What an optimizer climbs with: an ensemble's parameters and the losses of its members, in one call."""

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from vaeserve_training.config import ObjectiveConfig
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.features import Rows
from vaeserve_training.objective import loss
from vaeserve_training.vae import VAE


class Learner(nn.Module, ABC):
    """What an optimizer climbs with: a copy of an ensemble's parameters, and the loss of every member."""

    @abstractmethod
    def forward(self, rows: Rows, noise: Tensor, seen: Rows, beta: float, trim: float = 0.0) -> Tensor:
        """Return each member's loss, nats, [members]; `rows`, `noise` and `seen` have a leading axis of members."""

    @abstractmethod
    def clip_gradients(self, norm: float) -> None:
        """Scale each member's gradient down to `norm`."""

    @abstractmethod
    def copy_to(self, ensemble: Ensemble) -> None:
        """Copy what was learned into `ensemble`."""


class Alone(Learner):
    """One member, called as it is: a batched call of one costs half as much again."""

    def __init__(self, vae: VAE, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.member = _Loss(copy.deepcopy(vae), objective)

    @override
    def forward(self, rows: Rows, noise: Tensor, seen: Rows, beta: float, trim: float = 0.0) -> Tensor:
        value: Tensor = self.member(rows.pick(0), noise[0], seen.pick(0), beta, trim)
        return value[None]

    @override
    def clip_gradients(self, norm: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), norm, foreach=True)

    @override
    def copy_to(self, ensemble: Ensemble) -> None:
        ensemble.member.load_state_dict(self.member.vae.state_dict())


class Stacked(Learner):
    """Several members, their parameters stacked, so that one batched call is a step of them all."""

    def __init__(self, ensemble: Ensemble, objective: ObjectiveConfig) -> None:
        super().__init__()
        self._names = [name for name, _ in ensemble.member.named_parameters()]
        self.stacked = nn.ParameterList(
            nn.Parameter(torch.stack([vae.get_parameter(name).detach() for vae in ensemble])) for name in self._names
        )
        # A member that lends its structure; in a list, so that its parameters aren't taken for ours.
        self._structure = [_Loss(copy.deepcopy(ensemble.member), objective)]

    @override
    def forward(self, rows: Rows, noise: Tensor, seen: Rows, beta: float, trim: float = 0.0) -> Tensor:
        axes = ([0] * len(self.stacked), _axes(rows), 0, _axes(seen), None, None)
        losses: Tensor = torch.vmap(self._loss, in_dims=axes)(list(self.stacked), rows, noise, seen, beta, trim)
        return losses

    def _loss(
        self, parameters: list[Tensor], rows: Rows, noise: Tensor, seen: Rows, beta: float, trim: float = 0.0
    ) -> Tensor:
        named = {f"vae.{name}": tensor for name, tensor in zip(self._names, parameters, strict=True)}
        value: Tensor = torch.func.functional_call(self._structure[0], named, (rows, noise, seen, beta, trim))
        return value

    @override
    def clip_gradients(self, norm: float) -> None:
        gradients = [parameter.grad for parameter in self.stacked if parameter.grad is not None]
        squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)  # (members,)
        factors = (norm / (squares.sqrt() + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))

    @override
    def copy_to(self, ensemble: Ensemble) -> None:
        with torch.no_grad():
            for name, tensor in zip(self._names, self.stacked, strict=True):
                for index, vae in enumerate(ensemble):
                    vae.get_parameter(name).copy_(tensor[index])


def learner_of(ensemble: Ensemble, objective: ObjectiveConfig) -> Learner:
    """Return what trains an ensemble."""
    return Stacked(ensemble, objective) if len(ensemble) > 1 else Alone(ensemble.member, objective)


class _Loss(nn.Module):
    def __init__(self, vae: VAE, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.vae = vae
        self._objective = objective

    def forward(self, rows: Rows, noise: Tensor, seen: Rows, beta: float, trim: float = 0.0) -> Tensor:
        return loss(self.vae, rows, noise, self._objective, beta=beta, trim=trim, seen=seen)


def _axes(rows: Rows) -> Any:
    """Return where vmap finds the members: first, wherever there is a tensor."""
    axes: list[Any] = [None if tensor is None else 0 for tensor in rows]
    return Rows(*axes)
