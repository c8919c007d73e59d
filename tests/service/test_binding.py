"""Calls through buffers of a device: here the CPU's, for binding is the same on each."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vaeserve.errors import InternalError
from vaeserve_service.binding import Bindings, power_of_two, takes_strings
from vaeserve_service.runtime import Graph

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
NOISE = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)


def value(name: str, dtype: int, *shape: str | int) -> onnx.ValueInfoProto:
    """Return an input or output of a graph."""
    return helper.make_tensor_value_info(name, dtype, shape)


def small_graph(*, strings: bool = False) -> bytes:
    """Return a graph like a scorer's: of rows and noise, or of strings too, to numbers and the names of categories."""
    nodes = [
        helper.make_node("MatMul", ["numeric", "weights"], ["hidden"], "hidden"),
        helper.make_node("Tanh", ["hidden"], ["mean"], "mean"),
        helper.make_node("ReduceMax", ["mean", "last"], ["largest"], "largest"),
        helper.make_node("ReduceMax", ["noise", "last"], ["points"], "points", keepdims=0),
        helper.make_node("Add", ["largest", "points"], ["score"], "score"),
        helper.make_node("ArgMax", ["mean"], ["codes"], "codes", axis=1, keepdims=0),
        helper.make_node(
            "LabelEncoder", ["codes"], ["category"], "category",
            domain="ai.onnx.ml", keys_int64s=range(5), values_strings=list("abcde"),
        ),
    ]  # fmt: skip
    inputs = [value("numeric", FLOAT, "rows", 3), value("noise", FLOAT, "samples", 5)]
    outputs = [
        value("category", STRING, "rows"),
        value("mean", FLOAT, "rows", 5),
        value("score", FLOAT, "rows", "samples"),
    ]
    if strings:
        inputs.append(value("categorical", STRING, "rows"))
        outputs.append(value("known", INT64, "rows"))
        nodes.append(
            helper.make_node(
                "LabelEncoder", ["categorical"], ["known"], "known",
                domain="ai.onnx.ml", keys_strings=list("ab"), values_int64s=[1, 2],
            )
        )  # fmt: skip
    weights = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "small",
        inputs,
        outputs,
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1]), "last")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 2)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture
def plain() -> Graph:
    """A graph that is run as graphs are on the CPU."""
    return Graph(small_graph(), name="small")


@pytest.fixture
def bound() -> Graph:
    """The same graph, its calls bound."""
    graph = Graph(small_graph(), name="small")
    graph._bindings = Bindings(graph._session, "cpu")
    return graph


def rows(count: int, *, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return inputs of so many rows."""
    return {"numeric": np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)}


def assert_same(computed: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> None:
    """Assert the same names in the same order, dtypes, shapes and bits."""
    assert list(computed) == list(expected)
    for name, array in expected.items():
        assert (computed[name].dtype, computed[name].shape) == (array.dtype, array.shape), name
        assert computed[name].tolist() == array.tolist(), name


@pytest.mark.parametrize("chunk", [100, 7])
def test_bound_calls_give_the_bits_of_plain_ones(plain: Graph, bound: Graph, chunk: int) -> None:
    """Any number of rows, none too, in one call or in chunks, more after fewer and fewer after more, are the same."""
    for count in (3, 0, 1, 2, 31, 33, 100, 5, 1):
        given = rows(count, seed=count)
        assert_same(
            bound.run_rows(given, chunk=chunk, noise=NOISE),
            plain.run_rows(given, chunk=chunk, noise=NOISE),
        )


def test_chosen_outputs_are_computed_alone(plain: Graph, bound: Graph) -> None:
    """Outputs come as they are asked for, in that order, from buffers of their own."""
    for outputs in (["score"], ["mean", "category"], ["category"]):
        computed = bound.run_rows(rows(9), chunk=100, outputs=outputs, noise=NOISE)
        assert_same(computed, plain.run_rows(rows(9), chunk=100, outputs=outputs, noise=NOISE))


def test_noise_stays_on_the_device_until_it_is_another(plain: Graph, bound: Graph) -> None:
    """Equal noise is copied once; other values, even in the same array, and other sample counts are noticed."""
    assert bound._bindings
    noise = NOISE.copy()
    bound.run_rows(rows(4), chunk=100, noise=noise)
    (binding,) = next(iter(bound._bindings._free.values()))
    held = binding._fixed["noise"]
    bound.run_rows(rows(4), chunk=100, noise=noise.copy())
    assert binding._fixed["noise"] is held
    noise[0] += 1
    for other in (noise, noise[:2]):
        computed = bound.run_rows(rows(4), chunk=100, noise=other)
        assert_same(computed, plain.run_rows(rows(4), chunk=100, noise=other))
        assert binding._fixed["noise"] is not held


def test_outputs_outlive_the_next_call(plain: Graph, bound: Graph) -> None:
    """What a call returned is its caller's: the next call fills the buffers anew, not the arrays."""
    first = bound.run_rows(rows(4, seed=1), chunk=100, noise=NOISE)
    bound.run_rows(rows(4, seed=2), chunk=100, noise=NOISE)
    assert_same(first, plain.run_rows(rows(4, seed=1), chunk=100, noise=NOISE))


def test_calls_at_once_have_buffers_of_their_own(plain: Graph, bound: Graph) -> None:
    """Several threads get each their own rows' outputs, from at most as many sets of buffers."""
    given = [rows(900, seed=seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as executor:
        computed = list(executor.map(lambda some: bound.run_rows(some, chunk=1000, noise=NOISE), given))
    for some, outputs in zip(given, computed, strict=True):
        assert_same(outputs, plain.run_rows(some, chunk=1000, noise=NOISE))
    assert bound._bindings
    assert 1 <= len(bound._bindings._free[1024, ("category", "mean", "score")]) <= 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 3)), "small: numeric: float64 of shape [2, 3]; expected float32 of [3] a row"),
        (np.zeros((2, 1), np.float32), "small: numeric: float32 of shape [2, 1]; expected float32 of [3] a row"),
    ],
)
def test_inputs_of_another_form_are_refused(bound: Graph, given: NDArray[Any], message: str) -> None:
    """What a session refuses is neither converted nor repeated on its way into a buffer; the next call is right."""
    with pytest.raises(InternalError) as caught:
        bound.run_rows({"numeric": given}, chunk=100, noise=NOISE)
    assert str(caught.value) == message
    assert len(bound.run_rows(rows(2), chunk=100, noise=NOISE)["mean"]) == 2


def test_what_takes_strings_cannot_be_bound() -> None:
    """Strings go out of a bound graph; one that takes them is told apart."""
    assert not takes_strings(Graph(small_graph(), name="small")._session)
    assert takes_strings(Graph(small_graph(strings=True), name="small")._session)


def test_buffers_are_powers_of_two() -> None:
    """Few sizes serve all numbers of rows, no rows too."""
    assert [power_of_two(count) for count in (0, 1, 2, 3, 4, 5, 4095, 4096)] == [1, 1, 2, 4, 4, 8, 4096, 4096]


@pytest.mark.parametrize("kind", ["table7", "image", "conv"])
def test_a_models_scores_have_the_same_bits_when_bound(models: Any, inputs_of: Any, kind: str) -> None:
    """Real graphs, of numbers and of pixels, give the same bits from buffers as plainly."""
    bundle = models.bundles[kind]
    for name in ("encoder", "scorer"):
        graph = Graph(bundle.graph(name), name=name)
        fixed = {"noise": bundle.noise[:2]} if name == "scorer" else {}
        expected = graph.run_rows(inputs_of(kind, 70), chunk=32, **fixed)
        graph._bindings = Bindings(graph._session, "cpu")
        assert_same(graph.run_rows(inputs_of(kind, 70), chunk=32, **fixed), expected)
