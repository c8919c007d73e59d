"""A model's calls, on a runner of this process."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaeserve.errors import OutOfRangeError
from vaeserve.latents import Interpolation, prior_draws
from vaeserve_service.config import LimitsConfig, RepositoryConfig, ServiceConfig
from vaeserve_service.model import Model
from vaeserve_service.requests import Batch
from vaeserve_service.runners import Runners
from vaeserve_service.runtime import Runtime


async def test_invented_rows_are_joined_with_decoded_ones(models: Any) -> None:
    """Callers that generate, interpolate and decode share a call of the graph; all rows count, up to the limit."""
    batches: list[Batch] = []
    bundle = models.bundles["codes"]
    config = ServiceConfig(repository=RepositoryConfig(path=Path()), limits=LimitsConfig(request_rows=4))
    with Runners(1) as runners:
        model = Model(
            "codes",
            bundle,
            Runtime.load(bundle),
            config=config,
            runners=runners,
            on_batch=batches.append,
        )
        draws = prior_draws(2, 2, seed=3)
        generated, (between, latents), decoded = await asyncio.gather(
            model.generate(2, seed=3, temperature=1.0),
            model.interpolate(draws[0], draws[1], steps=4, method=Interpolation.LINEAR),
            model.decode(draws),
        )
        with pytest.raises(OutOfRangeError, match="count: 5 rows in a request; the service takes 4 at most"):
            await model.generate(5, seed=3, temperature=1.0)
    assert [batch.rows for batch in batches] == [2 + 4 + 2]
    assert latents[[0, -1]].tobytes() == draws.tobytes()
    for name, values in decoded.items():
        np.testing.assert_array_equal(generated[name], values)
        np.testing.assert_array_equal(between[name][[0, -1]], values)
