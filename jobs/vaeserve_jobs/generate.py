"""Rows that a model invents: decoded draws from its prior, and the way from one row to another."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import ConfigError, DataError
from vaeserve.latents import Interpolation, check_draws, check_path, path, prior_batches
from vaeserve.reading import read
from vaeserve.scores import RowStatus
from vaeserve.signature import Signature
from vaeserve.source import Source
from vaeserve_jobs.decoded import new_rows
from vaeserve_jobs.job import batch_rows
from vaeserve_jobs.model import Coder, Inputs


def generate_file(
    out: Path,
    *,
    coder: Coder,
    count: int,
    seed: int = 0,
    temperature: float = 1.0,
    on_batch: Callable[[int], None] = lambda _: None,
) -> None:
    """Write `count` decoded draws from N(0, I), times `temperature`, to `out`: the rows of `Client.generate`.

    on_batch is told how many rows each batch had.

    Raises ConfigError where `out` is no file for them, and InvalidInputError as `prior_draws` does.
    """
    check_draws(count, seed=seed, temperature=temperature)
    draws = prior_batches(count, coder.latent_dim, seed=seed, temperature=temperature, rows=batch_rows(coder.signature))
    with new_rows(out, coder.signature, rows=count) as write:
        for latents in draws:
            write(coder.decode(latents).outputs)
            on_batch(len(latents))


def interpolate_file(
    source: Source,
    out: Path,
    *,
    coder: Coder,
    start: int,
    end: int,
    steps: int = 11,
    method: Interpolation = Interpolation.LINEAR,
) -> None:
    """Write the reconstructions on the `path` between the posterior means of two of `source`'s rows, counted from 0.

    Raises ConfigError for a row that isn't there and where `out` is no file for them, DataError for a row that the
    model can't take, and InvalidInputError as `path` does.
    """
    check_path(steps, method)
    with new_rows(out, coder.signature, rows=steps, steps=True, across=steps) as write:
        first, last = _latents(source, coder, {"--start": start, "--end": end})
        latents = path(first, last, steps=steps, method=method)
        for batch in _batches(latents, batch_rows(coder.signature)):
            write(coder.decode(batch).outputs)


def _latents(source: Source, coder: Coder, rows: dict[str, int]) -> NDArray[np.float32]:
    """Return the posterior means of some rows, [rows, latent]."""
    inputs = _pick(source, coder.signature, rows)
    encoded = coder.encode(inputs)
    for (flag, row), status in zip(rows.items(), encoded.status, strict=True):
        if status != RowStatus.OK:
            raise DataError(
                f"{source.name}: {flag} {row}: {RowStatus(status).name}; expected a row that the model can take"
            )
    return encoded.mean


def _pick(source: Source, signature: Signature, rows: dict[str, int]) -> Inputs:
    """Return the inputs of some rows by their positions, and read no further than the last of them."""
    picked: dict[int, Inputs] = {}
    seen = 0
    for batch in read(replace(source, label=None), signature, batch_rows=batch_rows(signature)):
        count = len(next(iter(batch.inputs.values())))
        for row in rows.values():
            if seen <= row < seen + count:
                picked[row] = {name: array[row - seen] for name, array in batch.inputs.items()}
        seen += count
        if len(picked) == len(set(rows.values())):
            return {spec.name: np.stack([picked[row][spec.name] for row in rows.values()]) for spec in signature.inputs}
    flag, row = next((flag, row) for flag, row in rows.items() if row not in picked)
    raise ConfigError(f"{flag} {row}: {source.name} has {seen} rows; expected 0 to {seen - 1}")


def _batches(latents: NDArray[np.float32], rows: int) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(latents), rows):
        yield latents[start : start + rows]
