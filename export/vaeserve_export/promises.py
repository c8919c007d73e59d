"""What a score promises, tried on rows: each function raises RefusedError, naming the output, where it isn't kept.

Rows are a model's inputs by name, and `latents` beside them for the decoder.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import RefusedError
from vaeserve.scores import RowStatus
from vaeserve_service.runtime import TOLERANCE, Arrays, Runtime, largest_error

LATENTS = "latents"
# Around the widths of SIMD registers, where a batch's last rows take another way.
BATCH_SIZES = (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100)
THREADS = 4
# How far sums of single precision may lie from their parts, as a share of the parts' magnitudes.
ROUNDING = 1e-5
_MOST_ALONE = 60


def outputs_of(runtime: Runtime, rows: Arrays, noise: NDArray[np.float32]) -> Arrays:
    """Return every output of every graph, `GRAPH/OUTPUT`, for `rows` at `noise` [samples, latent]."""
    inputs = {name: array for name, array in rows.items() if name != LATENTS}
    computed = {
        "encoder": runtime.encode(inputs),
        "decoder": runtime.decode(rows[LATENTS]),
        "scorer": runtime.score(inputs, noise),
    }
    return {f"{graph}/{name}": array for graph, outputs in computed.items() for name, array in outputs.items()}


def some(arrays: Arrays, chosen: slice | NDArray[np.intp]) -> Arrays:
    """Return some rows of inputs or outputs."""
    return {name: array[chosen] for name, array in arrays.items()}


def count(rows: Arrays) -> int:
    """Return how many rows there are."""
    return len(next(iter(rows.values())))


def differing(computed: Arrays, expected: Arrays) -> str:
    """Return the first output whose bits differ, or nothing."""
    return next((name for name in expected if _bits(computed[name]) != _bits(expected[name])), "")


def _bits(array: NDArray[np.generic]) -> object:
    return array.tolist() if array.dtype.kind in "UO" else array.tobytes()


def refuse_unsteady(runtime: Runtime, again: Runtime, rows: Arrays, noise: NDArray[np.float32]) -> None:
    """Refuse a model whose outputs have other bits another time, or in the sessions of `again`."""
    first = outputs_of(runtime, rows, noise)
    for other, when in ((runtime, "run again"), (again, "run in other sessions")):
        if name := differing(outputs_of(other, rows, noise), first):
            raise RefusedError(f"{name}: other bits when {when}; expected the same")


def refuse_batch_dependent(
    runtime: Runtime, rows: Arrays, noise: NDArray[np.float32], *, sizes: Sequence[int] = BATCH_SIZES
) -> None:
    """Refuse a model whose rows have other bits alone, or in batches of `sizes` other rows, than among all of them."""
    whole = outputs_of(runtime, rows, noise)
    total, generator = count(rows), np.random.default_rng(0)
    alone = [np.array([row]) for row in range(0, total, max(1, total // _MOST_ALONE))]
    batches = [generator.permutation(total)[:size] for size in sizes if size <= total]
    for chosen in (*alone, *batches):
        if name := differing(outputs_of(runtime, some(rows, chosen), noise), some(whole, chosen)):
            where = f"of row {chosen[0]} alone" if len(chosen) == 1 else f"of some rows in a batch of {len(chosen)}"
            raise RefusedError(f"{name}: other bits {where} at {len(noise)} samples; expected those among {total} rows")


def refuse_thread_dependent(
    runtime: Runtime, rows: Arrays, noise: NDArray[np.float32], *, threads: int = THREADS
) -> None:
    """Refuse a model whose outputs have other bits when several `threads` score at the same time."""
    whole = outputs_of(runtime, rows, noise)
    parts = np.array_split(np.random.default_rng(1).permutation(count(rows)), 4 * threads)
    with ThreadPoolExecutor(threads) as executor:
        computed = executor.map(lambda chosen: outputs_of(runtime, some(rows, chosen), noise), parts)
        for chosen, outputs in zip(parts, computed, strict=True):
            if name := differing(outputs, some(whole, chosen)):
                raise RefusedError(f"{name}: other bits among {threads} threads; expected the same")


def refuse_loose_parts(outputs: Arrays) -> None:
    """Refuse scores whose parts don't add up: `elbo = log_likelihood - kl`, and the features' terms."""
    scored = outputs["scorer/status"] == RowStatus.OK
    parts = {name: outputs[f"scorer/{name}"][scored].astype(np.float64) for name in ("elbo", "log_likelihood", "kl")}
    terms = outputs["scorer/feature_log_likelihood"][scored].astype(np.float64)  # (rows, features)
    magnitude = np.abs(terms).sum(1)  # (rows,)
    sums = {
        "elbo": (parts["log_likelihood"] - parts["kl"], magnitude + np.abs(parts["kl"])),
        "log_likelihood": (terms.sum(1), magnitude),
    }
    for name, (expected, size) in sums.items():
        apart = np.abs(parts[name] - expected)
        if not (apart <= ROUNDING * size).all():
            row = int(np.argmax(apart - ROUNDING * size))
            raise RefusedError(f"scorer/{name}: {parts[name][row]:.9g}; its parts add up to {expected[row]:.9g}")


def refuse_not_finite(outputs: Arrays) -> None:
    """Refuse outputs for finite rows that aren't finite, or a status other than OK."""
    for name, array in outputs.items():
        if name.endswith("/status") and not (array == RowStatus.OK).all():
            raise RefusedError(f"{name}: {array.max()} for a finite row; expected {RowStatus.OK:d}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RefusedError(f"{name}: {array[~np.isfinite(array)][0]} for a finite row; expected a number")


def refuse_wrong_status(outputs: Arrays, statuses: list[frozenset[RowStatus]]) -> None:
    """Refuse outputs with another status than one of each row's `statuses`, or numbers where the status isn't OK."""
    for graph in ("encoder", "scorer"):
        for row, (status, expected) in enumerate(zip(outputs[f"{graph}/status"].tolist(), statuses, strict=True)):
            if status not in expected:
                names = " or ".join(sorted(known.name for known in expected))
                raise RefusedError(f"{graph}/status: {status} for row {row}; expected {names}")
            for name in (name for name in outputs if name.startswith(f"{graph}/") and not name.endswith("/status")):
                numbers = np.isfinite(outputs[name][row])
                if not (numbers.all() if status == RowStatus.OK else np.isnan(outputs[name][row]).all()):
                    raise RefusedError(
                        f"{name}: {outputs[name][row].ravel()[:3].tolist()} where the status is {status}; expected "
                        f"{'finite numbers' if status == RowStatus.OK else 'NaN'}"
                    )


def refuse_harm(outputs: Arrays, clean: Arrays, *, exactly: bool) -> None:
    """Refuse outputs of rows that are other than `clean`, what they were before rows beside them were spoiled.

    `exactly`: in every bit; or else within the tolerance between providers.
    """
    for name, expected in clean.items():
        error = largest_error(outputs[name], expected.astype(np.float64) if expected.dtype.kind == "f" else expected)
        if (exactly and _bits(outputs[name]) != _bits(expected)) or not error <= TOLERANCE:
            raise RefusedError(f"{name}: changed by an unscorable row in the batch; expected the same")
