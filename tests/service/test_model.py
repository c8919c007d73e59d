"""A model's calls, on a runner of this process."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaeserve.errors import OutOfRangeError
from vaeserve.latents import Interpolation, prior_draws
from vaeserve.scores import ScoreOptions
from vaeserve_service.config import LimitsConfig, RepositoryConfig, ServiceConfig
from vaeserve_service.model import Model
from vaeserve_service.requests import Arrays, Batch
from vaeserve_service.runners import Runners
from vaeserve_service.runtime import Runtime, golden_inputs


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
            on_batch=lambda _, batch: batches.append(batch),
        )
        draws = prior_draws(2, 2, seed=3)

        async def decode() -> Arrays:  # in its turn with the other two
            return await model.decode(draws)

        generated, (between, latents), decoded = await asyncio.gather(
            model.generate(2, seed=3, temperature=1.0),
            model.interpolate(draws[0], draws[1], steps=4, method=Interpolation.LINEAR),
            decode(),
        )
        with pytest.raises(OutOfRangeError, match="count: 5 rows in a request; the service takes 4 at most"):
            await model.generate(5, seed=3, temperature=1.0)
    assert [batch.rows for batch in batches] == [2 + 4 + 2]
    assert latents[[0, -1]].tobytes() == draws.tobytes()
    for name, values in decoded.items():
        np.testing.assert_array_equal(generated[name], values)
        np.testing.assert_array_equal(between[name][[0, -1]], values)


async def test_rows_past_the_limits_are_refused_before_they_are_looked_at(models: Any) -> None:
    """What is too much to ask or to answer is said at once, with what may be; a row that is wrong isn't found first."""
    bundle = models.bundles["codes"]
    limits = LimitsConfig(request_rows=10, response_bytes=100)
    with Runners(1) as runners:
        config = ServiceConfig(repository=RepositoryConfig(path=Path()), limits=limits)
        model = Model("codes", bundle, Runtime.load(bundle), config=config, runners=runners)
        strings = {name: np.full((11, 1), 5, object) for name in ("numeric", "categorical")}
        with pytest.raises(OutOfRangeError, match="rows: 11 in a request; the service takes 10 at most"):
            await model.score(strings, ScoreOptions())
        with pytest.raises(OutOfRangeError, match=r"rows: 4 in a response, of 32 bytes each; .* 100 bytes, 3 rows, at"):
            await model.score({name: array[:4] for name, array in strings.items()}, ScoreOptions())
        with pytest.raises(OutOfRangeError, match=r"count: 10 rows in a response, of \d+ bytes"):
            await model.generate(10, seed=1, temperature=1.0)


async def test_scores_are_given_though_they_cannot_be_counted(models: Any) -> None:
    """What counts the scores may fail, and costs nobody the answer."""

    def fail(_: object) -> None:
        raise ValueError("no such status")

    bundle = models.bundles["codes"]
    with Runners(1) as runners:
        config = ServiceConfig(repository=RepositoryConfig(path=Path()))
        model = Model("codes", bundle, Runtime.load(bundle), config=config, runners=runners, on_scores=fail)
        rows = golden_inputs(bundle.golden)
        scores = await model.score(rows, ScoreOptions())
    assert len(scores["records"]) == len(next(iter(rows.values())))
