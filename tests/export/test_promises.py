"""What a score promises: the same bits alone and in any batch, parts that add up, finite numbers, one status a row."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.conftest import KINDS
from vaeserve.bundle import Bundle
from vaeserve.errors import RefusedError
from vaeserve.scores import RowStatus
from vaeserve_export import promises
from vaeserve_service.runtime import GRAPHS, Runtime, largest_error

TABLES = [kind for kind, spec in KINDS.items() if "image" not in kind and len(spec.get("shape", ())) < 2]
SAMPLES = [1, 2, 3, 5, 8, 13]
SIZES = (*promises.BATCH_SIZES, 255, 500, 1023, 1024)

Outputs = dict[str, NDArray[Any]]
InputsOf = Callable[..., Outputs]


@pytest.fixture(scope="session")
def runtimes(models: Any) -> dict[str, Runtime]:
    """The runtime of each kind of model."""
    return {kind: Runtime.load(bundle) for kind, bundle in models.bundles.items()}


def same(one: Outputs, other: Outputs) -> bool:
    """Tell whether two calls' outputs agree in every bit."""
    return not promises.differing(one, other)


def trial(models: Any, inputs: Outputs, kind: str) -> Outputs:
    """Return a kind's rows, and latents for the decoder."""
    latent_dim = models.bundles[kind].manifest.latent_dim
    latents = np.random.default_rng(0).normal(size=(promises.count(inputs), latent_dim)).astype(np.float32)
    return {**inputs, promises.LATENTS: latents}


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(
    models: Any, runtimes: dict[str, Runtime], inputs_of: InputsOf, kind: str, samples: int
) -> None:
    """Every output of every graph is the same for a row alone, and in batches of 1 to 1024 rows at other positions."""
    rows, noise = trial(models, inputs_of(kind, 1024), kind), models.bundles[kind].noise[:samples]
    promises.refuse_batch_dependent(runtimes[kind], rows, noise, sizes=SIZES)


def planted(bundle: Bundle, change: Callable[[onnx.GraphProto], None]) -> Runtime:
    """Return a bundle's runtime with its scorer changed."""
    scorer = onnx.load_from_string(bundle.graph("scorer"))
    change(scorer.graph)
    return Runtime({name: bundle.graph(name) for name in GRAPHS} | {"scorer": scorer.SerializeToString()})


def test_an_operator_whose_bits_depend_on_the_batch_would_be_noticed(models: Any, inputs_of: InputsOf) -> None:
    """With Softplus planted for Sigmoid, the promise is broken, and the check of it says where."""
    bundle = models.bundles["table7"]

    def plant(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.op_type = "Softplus" if node.op_type == "Sigmoid" else node.op_type

    rows = trial(models, inputs_of("table7", 1024), "table7")
    with pytest.raises(RefusedError, match=r"scorer/\w+: other bits of "):
        promises.refuse_batch_dependent(planted(bundle, plant), rows, bundle.noise[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_has_the_same_bits_each_time(
    models: Any, runtimes: dict[str, Runtime], inputs_of: InputsOf, kind: str
) -> None:
    """Nothing is drawn at random while rows are scored: with noise drawn in the graph, the check would say so."""
    bundle, rows = models.bundles[kind], trial(models, inputs_of(kind, 100), kind)
    promises.refuse_unsteady(runtimes[kind], Runtime.load(bundle), rows, bundle.noise[:3])

    def plant(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = ["unseeded" if name == "noise" else name for name in node.input]
        graph.node.insert(0, onnx.helper.make_node("RandomNormalLike", ["noise"], ["unseeded"]))

    unsteady = planted(bundle, plant)
    with pytest.raises(RefusedError, match="other bits when run again"):
        promises.refuse_unsteady(unsteady, unsteady, rows, bundle.noise[:3])


@pytest.mark.parametrize("runners", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["table33", "mixed", "conv"])
def test_runners_side_by_side_give_the_same_bits(
    models: Any, runtimes: dict[str, Runtime], inputs_of: InputsOf, kind: str, runners: int
) -> None:
    """Any number of threads that score parts of the rows at once, on one session, give what one call gives."""
    rows = trial(models, inputs_of(kind, 1000), kind)
    promises.refuse_thread_dependent(runtimes[kind], rows, models.bundles[kind].noise[:3], threads=runners)


@pytest.mark.parametrize("kind", ["table7", "mixed"])
def test_another_process_gives_the_same(
    models: Any, runtimes: dict[str, Runtime], inputs_of: InputsOf, tmp_path: Path, kind: str
) -> None:
    """Two processes that score the same rows agree in every bit, whatever their batches."""
    bundle, inputs = models.bundles[kind], inputs_of(kind, 300)
    outputs = runtimes[kind].score(inputs, bundle.noise[:8])
    np.savez(tmp_path / "rows.npz", allow_pickle=False, **inputs)
    script = f"""
import hashlib
import numpy as np
from vaeserve.bundle import Bundle
from vaeserve_service.runtime import Runtime
bundle = Bundle.open({str(bundle.path)!r})
inputs = dict(np.load({str(tmp_path / "rows.npz")!r}))
runtime = Runtime.load(bundle)
parts = [
    runtime.score({{name: array[some] for name, array in inputs.items()}}, bundle.noise[:8])["elbo"]
    for some in np.array_split(np.arange(300), 7)
]
print(hashlib.sha256(np.concatenate(parts).tobytes()).hexdigest())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().strip() == hashlib.sha256(outputs["elbo"].tobytes()).hexdigest()


def test_an_ensemble_is_unrolled_into_products_with_flat_matrices(models: Any) -> None:
    """Each member's layers are products of their own by constant 2-D matrices: none are stacked into one of 3-D."""
    one, two = (onnx.load_from_string(models.bundles[kind].graph("scorer")) for kind in ("table7", "table33"))
    assert models.bundles["table33"].manifest.members == 2
    layers = (
        sum(node.op_type == "Gemm" for node in two.graph.node),
        sum(node.op_type == "Gemm" for node in one.graph.node),
    )
    assert layers[0] == 2 * layers[1]
    matrices = {tensor.name: len(tensor.dims) for tensor in two.graph.initializer}
    for node in two.graph.node:
        if node.op_type in ("Gemm", "MatMul"):
            assert {matrices[name] for name in node.input[:2] if name in matrices} <= {2}


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_add_up(models: Any, runtimes: dict[str, Runtime], inputs_of: InputsOf, kind: str) -> None:
    """The ELBO is log-likelihood less KL, the log-likelihood the features' sum, to 1e-5 of their magnitudes."""
    rows, noise = trial(models, inputs_of(kind, 500), kind), models.bundles[kind].noise[:8]
    outputs = promises.outputs_of(runtimes[kind], rows, noise)
    promises.refuse_loose_parts(outputs)
    scored = outputs["scorer/status"] == RowStatus.OK
    assert scored.sum() > 490
    assert (outputs["scorer/kl"][scored] >= 0).all()
    with pytest.raises(RefusedError, match="scorer/elbo: .* its parts add up to"):
        promises.refuse_loose_parts(outputs | {"scorer/kl": outputs["scorer/kl"] + np.float32(0.01)})


@pytest.mark.parametrize("kind", [kind for kind in TABLES if "shape" in KINDS[kind]])
def test_a_row_that_cannot_be_taken_harms_nobody(
    models: Any, runtimes: dict[str, Runtime], rows_of: Callable[..., NDArray[Any]], kind: str
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
            assert same(promises.some(out, slice(row, row + 1)), promises.some(clean, slice(row, row + 1)))
    for row, status in bad.items():
        assert out["status"][row] == status
        assert np.isnan([out[name][row] for name in ("elbo", "iwae", "log_likelihood", "kl")]).all()
        assert np.isnan(out["feature_log_likelihood"][row]).all()
    encoded = runtimes[kind].encode({"numeric": poisoned})
    assert np.isnan(encoded["mean"][5]).all()
    assert np.isfinite(encoded["mean"][4]).all()


def test_missing_and_unseen_categories_are_told_apart(
    models: Any, runtimes: dict[str, Runtime], inputs_of: InputsOf
) -> None:
    """An empty string is missing, and scored where training missed it too; an unseen category is scored as unlikely."""
    noise, clean = models.bundles["mixed"].noise[:2], promises.some(inputs_of("mixed", 40), slice(0, 40))
    columns = [column.nullable for column in models.bundles["mixed"].manifest.signature.categorical_columns]
    clean["categorical"] = np.where(clean["categorical"] == "", "a", clean["categorical"])
    rows = clean | {"categorical": clean["categorical"].astype(object)}
    required, nullable = columns.index(False), columns.index(True)
    rows["categorical"][3, required] = rows["categorical"][4, nullable] = ""
    rows["categorical"][5, required] = "never seen"
    before, after = (runtimes["mixed"].score(some, noise) for some in (clean, rows))
    assert after["status"].tolist() == [RowStatus.UNSCORABLE_MISSING if row == 3 else RowStatus.OK for row in range(40)]
    assert np.isnan(after["elbo"][3])
    assert np.isfinite(after["elbo"][[4, 5]]).all()
    feature = [column.name for column in models.bundles["mixed"].manifest.signature.columns].index(
        models.bundles["mixed"].manifest.signature.categorical_columns[required].name
    )
    assert after["feature_log_likelihood"][5, feature] < before["feature_log_likelihood"][5, feature]
    others = np.setdiff1d(np.arange(40), [3, 4, 5])
    assert same(promises.some(after, others), promises.some(before, others))


HUGE_AND_TINY = st.one_of(
    st.sampled_from([0.0, -0.0, 1e30, -1e30, 1e-30, 3.4e38, -3.4e38, 1e-45]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


CATEGORY = st.one_of(
    st.sampled_from(["a", "bx", "A", " a", "never seen", "\u00e9" * 300]), st.text(min_size=1, max_size=9)
)


@pytest.mark.parametrize("kind", TABLES)
def test_finite_input_gives_a_finite_score(models: Any, runtimes: dict[str, Runtime], kind: str) -> None:
    """Any row of finite numbers, however huge or tiny, and of any categories has finite numbers throughout."""
    signature = models.bundles[kind].manifest.signature
    elements: dict[str, tuple[Any, Any]] = {"numeric": (np.float32, HUGE_AND_TINY), "categorical": (object, CATEGORY)}
    arrays = {
        spec.name: hnp.arrays(elements[spec.name][0], (3, spec.shape[1]), elements=elements[spec.name][1])
        for spec in signature.inputs
    }

    @settings(max_examples=100, deadline=None)
    @given(st.fixed_dictionaries(arrays))
    def check(inputs: Outputs) -> None:
        out = runtimes[kind].score(inputs, models.bundles[kind].noise[:8])
        assert all(np.isfinite(array).all() for array in out.values())
        assert (out["status"] == RowStatus.OK).all()

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_latents_within_the_range_that_is_taken_have_finite_reconstructions(
    models: Any, runtimes: dict[str, Runtime], kind: str
) -> None:
    """Whatever latents within +-1000 are decoded, nothing that comes out is infinite or NaN."""
    latents = hnp.arrays(
        np.float32, (3, models.bundles[kind].manifest.latent_dim), elements=st.floats(-1e3, 1e3, width=32)
    )

    @settings(max_examples=50, deadline=None)
    @given(latents)
    def check(z: NDArray[np.float32]) -> None:
        for name, array in runtimes[kind].decode(z).items():
            assert array.dtype.kind in "UO" or np.isfinite(array).all(), name

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_has_the_same_bits_whatever_else_is_asked_for(
    models: Any, runtimes: dict[str, Runtime], inputs_of: InputsOf, kind: str
) -> None:
    """The ELBO and its parts are the same without the other bound and the features' terms, which aren't computed."""
    inputs, noise, runtime = inputs_of(kind, 100), models.bundles[kind].noise[:8], runtimes[kind]
    everything, alone = runtime.score(inputs, noise), runtime.score(inputs, noise, by_feature=False, iwae=False)
    assert set(alone) == {"elbo", "log_likelihood", "kl", "status"}
    assert same(alone, {name: everything[name] for name in alone})


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_rows_is_cut_into_chunks(
    models: Any, runtimes: dict[str, Runtime], inputs_of: InputsOf, kind: str
) -> None:
    """No rows give no rows, and 100,000 the same bits as parts of them."""
    count = 100_000 if kind in TABLES else 10_000
    inputs, noise, runtime = inputs_of(kind, count), models.bundles[kind].noise[:1], runtimes[kind]
    none = runtime.score(promises.some(inputs, slice(0, 0)), noise)
    assert all(len(array) == 0 for array in none.values())
    assert all(len(array) == 0 for array in runtime.reconstruct(promises.some(inputs, slice(0, 0))).values())
    whole = runtime.score(inputs, noise)
    assert {len(array) for array in whole.values()} == {count}
    for part in (slice(0, 100), slice(4000, 4200), slice(count - 5000, count)):
        assert same(runtime.score(promises.some(inputs, part), noise), promises.some(whole, part))


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
