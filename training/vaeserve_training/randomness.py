"""Random numbers that depend on what they are for alone, not on what was drawn before."""

import numpy as np
import torch


def seed_of(*key: int) -> int:
    """Return the 63-bit seed that belongs to `key`, all of it non-negative."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_of(device: torch.device, *key: int) -> torch.Generator:
    """Return the generator that belongs to `key`."""
    return torch.Generator(device).manual_seed(seed_of(*key))
