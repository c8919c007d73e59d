"""Members side by side, whose mean bound is the score."""

import math

import numpy as np
import torch

from vaeserve.signature import Signature
from vaeserve_training.config import ModelConfig
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.features import TableFeatures
from vaeserve_training.likelihoods import FixedGaussian
from vaeserve_training.objective import bounds
from vaeserve_training.prior import Exemplars, StandardNormal, kl_terms
from vaeserve_training.scaling import Robust, Scaling, Standard
from vaeserve_training.vae import VAE

ROWS = {"numeric": torch.tensor(np.random.default_rng(0).normal(3, 2, (50, 4)), dtype=torch.float32)}
NOISE = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))


def ensemble(size: int = 3, *, best: int = 0) -> Ensemble:
    """Return an untrained ensemble of small members, scaled in turn by moments and by quantiles."""
    config = ModelConfig(
        likelihood="gaussian", network="mlp", latent_dim=2, hidden=(8,), scaling=("standard", "robust"), exemplars=5
    )
    built = Ensemble.build(Signature.numbers([*"abcd"]), config, size=size, best=best)
    for vae in built:
        vae.features.fit(ROWS)
    return built


def scaling_of(vae: VAE) -> Scaling:
    """Return how a member scales numbers."""
    assert isinstance(vae.features, TableFeatures)
    return vae.features.scaling


def test_the_members_take_the_scalings_in_turn() -> None:
    """Of several scalings the first member has the first, and after the last they begin again."""
    scalings = [type(scaling_of(vae)) for vae in ensemble(5)]
    assert scalings == [Standard, Robust, Standard, Robust, Standard]


def test_the_members_differ() -> None:
    """Each member has weights of its own from the start."""
    first, *others = (torch.cat([p.flatten() for p in vae.encoder.parameters()]) for vae in ensemble())
    assert all(not torch.allclose(first, other) for other in others)


def test_the_bounds_are_the_mean_of_the_members() -> None:
    """Each bound and part of a row is the mean of the members', each of which scales the raw row its own way."""
    built = ensemble()
    parts = [bounds(vae, vae.features(ROWS), NOISE) for vae in built]
    for mean, members in zip(built.bounds(ROWS, NOISE), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(mean, torch.stack(list(members)).mean(0))


def test_scalings_do_not_change_what_density_means() -> None:
    """One and the same density of raw rows comes out alike, whichever way a member scales them."""
    rows = {"numeric": torch.tensor(np.random.default_rng(0).gamma(2, 3, (50, 1)), dtype=torch.float32)}
    config = ModelConfig(
        network="mlp", likelihood="gaussian", latent_dim=2, hidden=(8,), scaling=("standard", "robust")
    )
    standard, robust = Ensemble.build(Signature.numbers(["a"]), config, size=2)
    for vae in (standard, robust):
        vae.features.fit(rows)
    one, other = (scaling_of(vae) for vae in (standard, robust))
    ratio = float(one.scale / other.scale)
    with torch.no_grad():
        for vae in (standard, robust):
            for parameter in vae.parameters():
                parameter.zero_()  # the decoder says 0 for any latent
        robust.decoder.get_parameter("2.bias").copy_((one.center - other.center) / other.scale)
    standard.likelihood, robust.likelihood = FixedGaussian(1, scale=0.8), FixedGaussian(1, scale=0.8 * ratio)
    assert abs(ratio - 1) > 0.02
    parts = [bounds(vae, vae.features(rows), torch.zeros(1, 2)).feature_log_likelihood for vae in (standard, robust)]
    torch.testing.assert_close(*parts, rtol=1e-4, atol=1e-4)


def test_rows_are_scored_with_a_posterior_of_a_given_width() -> None:
    """The score's posterior has the encoder's mean and the width set; at 0 it is the encoder's own."""
    for sigma in (0.0, 0.1):
        config = ModelConfig(network="mlp", likelihood="gaussian", latent_dim=2, hidden=(8,), score_sigma=sigma)
        built = Ensemble.build(Signature.numbers([*"abcd"]), config, size=2)
        score, bound = built.score(ROWS, NOISE), built.bounds(ROWS, NOISE)
        if not sigma:
            assert all(torch.equal(one, other) for one, other in zip(score, bound, strict=True))
            continue
        kls = []
        for vae in built:
            mean = vae.encode(vae.features(ROWS)).mean
            kls.append(kl_terms(mean, torch.full_like(mean, 2 * math.log(sigma))).sum(1))
        torch.testing.assert_close(score.kl, torch.stack(kls).mean(0))
        assert not torch.allclose(score.elbo, bound.elbo)


def test_the_best_member_encodes_for_all() -> None:
    """`member` is the one that was best, and status is asked of it."""
    built = ensemble(best=2)
    assert built.member is list(built)[2]
    assert len(built) == 3
    assert built.status({"numeric": torch.tensor([[1.0, 2, 3, torch.nan]])}).tolist() == [1]


def test_a_reserved_prior_takes_the_exemplars_weights() -> None:
    """Weights with exemplars load into an ensemble that reserved room for them, and one that didn't has none."""
    trained, read, plain = ensemble(), ensemble(), ensemble()
    for vae in trained:
        vae.prior = Exemplars.of(torch.randn(5, 2), torch.zeros(5, 2))
    config = ModelConfig(latent_dim=2, prior="exemplars", exemplars=5)
    read.reserve_prior(config)
    read.load_state_dict(trained.state_dict())
    for one, other in zip(trained.bounds(ROWS, NOISE), read.bounds(ROWS, NOISE), strict=True):
        assert torch.equal(one, other)
    plain.reserve_prior(ModelConfig(latent_dim=2, prior="standard_normal"))
    assert all(isinstance(vae.prior, StandardNormal) for vae in plain)
