"""Members that learn in one batched call, against each alone."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vaeserve.signature import Column, Signature
from vaeserve_training.config import ModelConfig, ObjectiveConfig
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.features import Rows, tensors_of
from vaeserve_training.learner import Alone, Learner, Stacked, learner_of
from vaeserve_training.objective import loss

MIXED = Signature.table([
    Column("colour", "categorical", ("blue", "red", "green"), nullable=True),
    Column("size", "numeric"),
    Column("flag", "binary"),
    Column("weight", "numeric", nullable=True),
])  # fmt: skip
NUMBERS = Signature.numbers([*"abcd"])
ROWS = 16


def raw(signature: Signature) -> dict[str, Tensor]:
    """Return raw rows of a table, with gaps where it may have them."""
    generator = np.random.default_rng(0)
    if signature is NUMBERS:
        return {"numeric": torch.tensor(generator.normal(5, 3, (ROWS, 4)), dtype=torch.float32)}
    numeric = generator.normal(5, 3, (ROWS, 3)).astype(np.float32)
    numeric[:, 1] = numeric[:, 1] > 5
    numeric[::3, 2] = np.nan
    colour = np.where(np.arange(ROWS) % 4 == 0, "", generator.choice(["blue", "red", "green"], ROWS))
    return tensors_of(signature, {"numeric": numeric, "categorical": colour[:, None]})


def ensemble_of(signature: Signature, *, size: int = 3, **model: Any) -> Ensemble:
    """Return an untrained ensemble with its features fitted."""
    settings = {
        "likelihood": "student_t", "network": "mlp", "latent_dim": 2, "hidden": (8,), "scaling": ("standard", "robust")
    } | model  # fmt: skip
    ensemble = Ensemble.build(signature, ModelConfig.model_validate(settings), size=size)
    for vae in ensemble:
        vae.features.fit(raw(signature))
    return ensemble


def batch(ensemble: Ensemble, signature: Signature, step: int, *, samples: int = 2) -> tuple[Rows, Tensor, Rows]:
    """Return a step's rows, noise and what the encoder sees, each with a leading axis of members."""
    generator = torch.Generator().manual_seed(step)
    parts = [vae.features(raw(signature)) for vae in ensemble]
    if any(part.log_jacobian is not None for part in parts):
        parts = [
            part if part.log_jacobian is not None else part._replace(log_jacobian=torch.zeros_like(part.x))
            for part in parts
        ]
    rows = Rows.joined(parts, torch.stack)
    noise = torch.randn(len(ensemble), ROWS, samples, 2, generator=generator)
    added = 0.1 * torch.randn(rows.x.shape, generator=generator) * ensemble.member.features.takes_noise
    return rows, noise, rows._replace(x=rows.x + added)


def climb(learner: Learner, batches: list[tuple[Rows, Tensor, Rows]], *, norm: float = 1e9) -> Tensor:
    """Take a step of Adam a batch; return the losses, [steps, members]."""
    adam = torch.optim.Adam(learner.parameters(), lr=0.01)
    losses = []
    for rows, noise, seen in batches:
        value = learner(rows, noise, seen, 0.5)
        adam.zero_grad()
        value.sum().backward()
        learner.clip_gradients(norm)
        adam.step()
        losses.append(value.detach())
    return torch.stack(losses)


def of_member(part: Rows | Tensor, index: int) -> Rows | Tensor:
    """Return a member's share of a batch, with the leading axis."""
    return part.pick(slice(index, index + 1)) if isinstance(part, Rows) else part[index : index + 1]


@pytest.mark.parametrize("signature", [NUMBERS, MIXED], ids=["numbers", "mixed"])
@pytest.mark.parametrize(
    ("model", "objective", "norm"),
    [
        ({}, {}, 1e9),
        ({}, {}, 0.5),
        ({"network": "residual", "hidden": (8, 6)}, {"free_bits": 0.2}, 1e9),
        ({"likelihood": "gaussian"}, {"bound": "iwae"}, 1.0),
        ({"posterior": "point", "prior": "standard_normal"}, {}, 1e9),
    ],
)
def test_a_member_learns_beside_others_what_it_learns_alone(
    signature: Signature, model: dict[str, Any], objective: dict[str, Any], norm: float
) -> None:
    """Losses and weights after some steps are, up to rounding, those of the member trained by itself."""
    config = ObjectiveConfig.model_validate(objective)
    together = ensemble_of(signature, **model)
    batches = [batch(together, signature, step) for step in range(8)]
    members = [copy.deepcopy(vae) for vae in together]
    stacked = learner_of(together, config)
    assert isinstance(stacked, Stacked)
    losses = climb(stacked, batches, norm=norm)
    stacked.copy_to(together)
    for index, vae in enumerate(members):
        only = Ensemble([vae])
        alone = learner_of(only, config)
        assert isinstance(alone, Alone)
        mine = [tuple(of_member(part, index) for part in parts) for parts in batches]
        expected = climb(alone, mine, norm=norm)  # type: ignore[arg-type]
        alone.copy_to(only)
        torch.testing.assert_close(losses[:, index : index + 1], expected, rtol=1e-4, atol=1e-4)
        learned = dict(list(together)[index].named_parameters())
        for name, parameter in only.member.named_parameters():
            torch.testing.assert_close(learned[name], parameter, rtol=1e-3, atol=1e-3, msg=name)


def test_the_losses_are_the_members_own() -> None:
    """One call gives each member's loss of its own rows and noise."""
    ensemble, config = ensemble_of(MIXED), ObjectiveConfig()
    rows, noise, seen = batch(ensemble, MIXED, 0)
    losses = learner_of(ensemble, config)(rows, noise, seen, 0.3)
    expected = [
        loss(vae, rows.pick(index), noise[index], config, beta=0.3, seen=seen.pick(index))
        for index, vae in enumerate(ensemble)
    ]
    torch.testing.assert_close(losses, torch.stack(expected))
    assert len(set(losses.tolist())) == 3


def test_each_members_gradient_is_clipped_by_itself() -> None:
    """Clipping scales a member's gradient as PyTorch would that of the member alone, and leaves small ones be."""
    ensemble, config = ensemble_of(NUMBERS), ObjectiveConfig()
    with torch.no_grad():
        for parameter in list(ensemble)[1].parameters():
            parameter.mul_(4)
    rows, noise, seen = batch(ensemble, NUMBERS, 0)
    singles = [Alone(vae, config) for vae in ensemble]
    norms = []
    for index, single in enumerate(singles):
        single(*(of_member(part, index) for part in (rows, noise, seen)), 1.0).sum().backward()
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in single.parameters() if p.grad is not None])))
    limit = sorted(norms)[1] * 1.01  # one is above
    assert min(norms) < limit < max(norms)
    for single in singles:
        single.clip_gradients(limit)
    stacked = learner_of(ensemble, config)
    assert isinstance(stacked, Stacked)
    stacked(rows, noise, seen, 1.0).sum().backward()
    stacked.clip_gradients(limit)
    for index, single in enumerate(singles):
        for together, alone in zip(stacked.stacked, single.parameters(), strict=True):
            assert together.grad is not None
            assert alone.grad is not None
            torch.testing.assert_close(together.grad[index], alone.grad, rtol=1e-4, atol=1e-6)
    largest = [p.grad for p in singles[norms.index(max(norms))].parameters() if p.grad is not None]
    assert float(torch.nn.utils.get_total_norm(largest)) == pytest.approx(limit, rel=1e-4)


def test_learning_leaves_the_ensemble_alone_until_it_is_copied() -> None:
    """A learner climbs with a copy: the ensemble changes when asked to, in every member."""
    for size in (1, 3):
        ensemble = ensemble_of(NUMBERS, size=size)
        before = [[p.clone() for p in vae.parameters()] for vae in ensemble]
        learner = learner_of(ensemble, ObjectiveConfig())
        climb(learner, [batch(ensemble, NUMBERS, step) for step in range(2)])
        for vae, weights in zip(ensemble, before, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(vae.parameters(), weights, strict=True))
        learner.copy_to(ensemble)
        for vae, weights in zip(ensemble, before, strict=True):
            assert not any(torch.equal(one, other) for one, other in zip(vae.parameters(), weights, strict=True))


def test_its_state_goes_on_where_it_was() -> None:
    """A learner with another's state gives its losses to the bit."""
    for size in (1, 3):
        ensemble = ensemble_of(MIXED, size=size)
        parts = batch(ensemble, MIXED, 0)
        learner, other = (learner_of(ensemble, ObjectiveConfig()) for _ in range(2))
        climb(learner, [parts])
        assert not torch.equal(learner(*parts, 1.0), other(*parts, 1.0))
        other.load_state_dict(learner.state_dict())
        assert torch.equal(learner(*parts, 1.0), other(*parts, 1.0))
