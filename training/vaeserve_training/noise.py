"""The fixed points at which a model scores."""

import numpy as np
import torch
from numpy.typing import NDArray

# Points kept in a bundle: the most samples that a score can be asked for.
POINTS = 256
# How near to 0 and 1 a point may lie; the normal quantile of it is 5.2.
EDGE = 1e-7
# Scramblings to choose from.
CANDIDATES = 64


def sobol_normal(latent_dim: int, *, seed: int, num_samples: int, points: int = POINTS) -> NDArray[np.float32]:
    """Return standard-normal points [points, latent_dim], every other one the opposite of the one before.

    They are scrambled Sobol points through the normal quantile: the first 2^k are as evenly spread as 2^k points can
    be, so a mean over few has little error, and with opposites none where what is averaged is linear. Sources: Owen,
    Scrambling Sobol' and Niederreiter-Xing Points, 1998; Monte Carlo Theory, Methods and Examples, 2013, section 8.2.

    Half the points' squared length enters every row's `log q(z|x)`. Few points have any, and so shift all bounds by
    nats; of several scramblings it is the one whose first `num_samples` points have the length that is expected.
    """
    seeds = np.random.SeedSequence(seed).generate_state(CANDIDATES).tolist()
    candidates = (_scrambled(latent_dim, seed=candidate, points=points) for candidate in seeds)
    return min(candidates, key=lambda normal: abs(float(np.square(normal[:num_samples]).mean()) - 1))


def _scrambled(latent_dim: int, *, seed: int, points: int) -> NDArray[np.float32]:
    engine = torch.quasirandom.SobolEngine(latent_dim, scramble=True, seed=seed)
    uniform = engine.draw(-(-points // 2), dtype=torch.float64).clamp(EDGE, 1 - EDGE)
    half = torch.special.ndtri(uniform).to(torch.float32)
    normal: NDArray[np.float32] = torch.stack([half, -half], dim=1).reshape(-1, latent_dim)[:points].numpy()
    return normal
