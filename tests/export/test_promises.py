"""What a score promises: the same bits alone and in any batch, parts that add up, finite numbers, one status a row."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from vaeserve.scores import RowStatus
from vaeserve_service.runtime import Runtime, largest_error

KINDS = ["table3", "table7", "table33", "binary21", "image", "grey"]
TABLES = ["table3", "table7", "table33", "binary21"]
SAMPLES = [1, 2, 3, 5, 8, 13]

RowsOf = Callable[..., NDArray[Any]]


@pytest.fixture(scope="session")
def runtimes(models: Any) -> dict[str, Runtime]:
    """The runtime of each kind of model."""
    return {kind: Runtime.load(bundle) for kind, bundle in models.bundles.items()}


def same_bits(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> bool:
    """Tell whether two calls' outputs agree in every bit."""
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


def rows_at(outputs: dict[str, NDArray[Any]], rows: slice) -> dict[str, NDArray[Any]]:
    """Return some rows of a call's outputs."""
    return {name: array[rows] for name, array in outputs.items()}


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_alone_and_in_a_batch(
    models: Any, runtimes: dict[str, Runtime], rows_of: RowsOf, kind: str, samples: int
) -> None:
    """Every output of every row is the same alone, and in batches of many sizes at many positions."""
    (name,) = (spec.name for spec in models.bundles[kind].manifest.signature.inputs)
    rows, noise, runtime = rows_of(kind, 1024), models.bundles[kind].noise[:samples], runtimes[kind]
    whole = runtime.score({name: rows}, noise)
    for row in range(0, 1024, 17):
        alone = runtime.score({name: rows[row : row + 1]}, noise)
        assert same_bits(alone, rows_at(whole, slice(row, row + 1))), f"row {row} alone"
    generator = np.random.default_rng(samples)
    for size in (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 255, 500):
        start = int(generator.integers(0, 1024 - size))
        part = runtime.score({name: rows[start : start + size]}, noise)
        assert same_bits(part, rows_at(whole, slice(start, start + size))), f"{size} rows from {start}"


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_and_decoder_keep_bits_in_any_batch_too(
    models: Any, runtimes: dict[str, Runtime], rows_of: RowsOf, kind: str
) -> None:
    """Posteriors and reconstructions don't depend on the rows beside them either."""
    (name,) = (spec.name for spec in models.bundles[kind].manifest.signature.inputs)
    rows, runtime = rows_of(kind, 100), runtimes[kind]
    whole, encoded = runtime.reconstruct({name: rows}), runtime.encode({name: rows})
    for start, size in ((0, 1), (37, 1), (99, 1), (3, 2), (10, 33), (50, 50)):
        part = {name: rows[start : start + size]}
        assert same_bits(runtime.reconstruct(part), rows_at(whole, slice(start, start + size)))
        assert same_bits(runtime.encode(part), rows_at(encoded, slice(start, start + size)))


def test_another_process_gives_the_same_bits(models: Any, runtimes: dict[str, Runtime], rows_of: RowsOf) -> None:
    """Two processes that score the same rows agree in every bit, whatever their batches."""
    bundle, rows = models.bundles["table7"], rows_of("table7", 300)
    outputs = runtimes["table7"].score({"numeric": rows}, bundle.noise[:8])
    script = f"""
import hashlib, sys
import numpy as np
from vaeserve.bundle import Bundle
from vaeserve_service.runtime import Runtime
bundle = Bundle.open({str(bundle.path)!r})
rows = np.frombuffer(sys.stdin.buffer.read(), np.float32).reshape(-1, 7)
runtime = Runtime.load(bundle)
parts = [runtime.score({{"numeric": some}}, bundle.noise[:8])["elbo"] for some in np.array_split(rows, 7)]
print(hashlib.sha256(np.concatenate(parts).tobytes()).hexdigest())
"""
    done = subprocess.run([sys.executable, "-c", script], input=rows.tobytes(), capture_output=True, check=True)
    assert done.stdout.decode().strip() == hashlib.sha256(outputs["elbo"].tobytes()).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_add_up(models: Any, runtimes: dict[str, Runtime], rows_of: RowsOf, kind: str) -> None:
    """The ELBO is log-likelihood less KL, the log-likelihood the features' sum, to 1e-5 of their magnitudes."""
    (name,) = (spec.name for spec in models.bundles[kind].manifest.signature.inputs)
    out = runtimes[kind].score({name: rows_of(kind, 500)}, models.bundles[kind].noise[:8])
    terms = out["feature_log_likelihood"].astype(np.float64)
    magnitude = np.abs(terms).sum(1)
    assert (np.abs(out["log_likelihood"] - terms.sum(1)) <= 1e-5 * magnitude).all()
    difference = out["log_likelihood"].astype(np.float64) - out["kl"]
    assert (np.abs(out["elbo"] - difference) <= 1e-5 * (magnitude + out["kl"])).all()
    assert (out["kl"] >= 0).all()


@pytest.mark.parametrize("kind", TABLES)
def test_a_row_that_cannot_be_taken_harms_nobody(
    models: Any, runtimes: dict[str, Runtime], rows_of: RowsOf, kind: str
) -> None:
    """A missing or infinite value gives its own row NaN and a status; every other row keeps its bits."""
    rows, noise = rows_of(kind, 64), models.bundles[kind].noise[:8]
    clean = runtimes[kind].score({"numeric": rows}, noise)
    poisoned = rows.copy()
    poisoned[5, 0], poisoned[9, -1], poisoned[63] = np.nan, -np.inf, np.nan
    out = runtimes[kind].score({"numeric": poisoned}, noise)
    bad = {5: RowStatus.UNSCORABLE_MISSING, 9: RowStatus.UNSCORABLE_NOT_FINITE, 63: RowStatus.UNSCORABLE_MISSING}
    for row in range(64):
        if row not in bad:
            assert same_bits(rows_at(out, slice(row, row + 1)), rows_at(clean, slice(row, row + 1)))
    for row, status in bad.items():
        assert out["status"][row] == status
        assert np.isnan([out[name][row] for name in ("elbo", "iwae", "log_likelihood", "kl")]).all()
        assert np.isnan(out["feature_log_likelihood"][row]).all()
    encoded = runtimes[kind].encode({"numeric": poisoned})
    assert np.isnan(encoded["mean"][5]).all()
    assert np.isfinite(encoded["mean"][4]).all()


HUGE_AND_TINY = st.one_of(
    st.sampled_from([0.0, -0.0, 1e30, -1e30, 1e-30, 3.4e38, -3.4e38, 1e-45]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@pytest.mark.parametrize("kind", TABLES)
def test_finite_input_gives_a_finite_score(models: Any, runtimes: dict[str, Runtime], kind: str) -> None:
    """Any finite row, however huge or tiny, has finite numbers throughout."""
    features = len(models.bundles[kind].manifest.signature.columns)

    @settings(max_examples=100, deadline=None)
    @given(hnp.arrays(np.float32, (3, features), elements=HUGE_AND_TINY))
    def check(rows: NDArray[np.float32]) -> None:
        out = runtimes[kind].score({"numeric": rows}, models.bundles[kind].noise[:8])
        assert all(np.isfinite(array).all() for array in out.values())
        assert (out["status"] == RowStatus.OK).all()

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_rows_is_cut_into_chunks(
    models: Any, runtimes: dict[str, Runtime], rows_of: RowsOf, kind: str
) -> None:
    """No rows give no rows, and more than a chunk the same bits as a part of them."""
    (name,) = (spec.name for spec in models.bundles[kind].manifest.signature.inputs)
    rows, noise, runtime = rows_of(kind, 3000), models.bundles[kind].noise[:8], runtimes[kind]
    none = runtime.score({name: rows[:0]}, noise)
    assert all(len(array) == 0 for array in none.values())
    assert all(len(array) == 0 for array in runtime.reconstruct({name: rows[:0]}).values())
    whole = runtime.score({name: rows}, noise)
    assert same_bits(runtime.score({name: rows[2500:]}, noise), rows_at(whole, slice(2500, 3000)))


def test_errors_between_arrays_are_relative_and_strict_about_nan() -> None:
    """The measure of parity counts NaN against a number, and shapes that differ, as infinitely wrong."""
    one, nan = np.array([1.0, 100.0]), np.array([1.0, np.nan])
    assert largest_error(np.array([1.1, 100.0]), one) == pytest.approx(0.1)
    assert largest_error(np.array([1.0, 110.0]), one) == pytest.approx(0.1)
    assert largest_error(nan, one) == np.inf
    assert largest_error(nan, nan) == 0
    assert largest_error(one[:1], one) == np.inf
    pixels = np.array([7], np.uint8)
    assert largest_error(pixels, np.array([8], np.uint8)) == 0
    assert largest_error(pixels, np.array([9], np.uint8)) == pytest.approx(1 / 9)
