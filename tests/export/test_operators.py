"""Which operators a graph may have."""

import onnx
import pytest
from onnx import TensorProto, helper

from vaeserve.errors import RefusedError
from vaeserve_export.graphs import OPSET
from vaeserve_export.operators import ALLOWED, check_operators


def model(*nodes: onnx.NodeProto, inputs: dict[str, list[int | str]] | None = None) -> onnx.ModelProto:
    """Return a model of these nodes over `x` [rows, 3] and a constant `w` [3, 2]."""
    shapes: dict[str, list[int | str]] = {"x": ["rows", 3], **(inputs or {})}
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("w", TensorProto.FLOAT, [3, 2], [0.0] * 6)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


@pytest.mark.parametrize(
    "operator", ["Log", "Softplus", "Elu", "Selu", "Mish", "Sin", "Cos", "Atan", "ReduceSum", "ReduceMean", "Einsum"]
)
def test_an_operator_whose_bits_depend_on_the_batch_is_refused(operator: str) -> None:
    """Operators that were seen to give a row other bits in another batch are refused by name."""
    with pytest.raises(RefusedError, match=rf"scorer\.onnx: operator {operator} .*other bits in another batch"):
        check_operators(model(helper.make_node(operator, ["x"], ["y"], name="planted")), "scorer")


def test_an_operator_of_another_domain_is_refused() -> None:
    """A custom operator of an allowed name is still another's."""
    with pytest.raises(RefusedError, match=r"operator com\.microsoft\.Gelu"):
        check_operators(model(helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")), "scorer")


@pytest.mark.parametrize("operator", ["Exp", "Sigmoid", "Tanh", "Relu", "Softmax", "LayerNormalization"])
def test_measured_operators_pass(operator: str) -> None:
    """Operators that held for every shape tried may be used."""
    check_operators(model(helper.make_node(operator, ["x"], ["y"])), "scorer")


def test_products_with_constant_matrices_pass() -> None:
    """A product by a constant 2-D matrix passes, and so does one fixed row times each row's own matrix."""
    check_operators(model(helper.make_node("MatMul", ["x", "w"], ["y"])), "scorer")
    per_row: dict[str, list[int | str]] = {"ones": [1, "samples"], "terms": ["rows", "samples", 3]}
    check_operators(model(helper.make_node("MatMul", ["ones", "terms"], ["y"]), inputs=per_row), "scorer")


def test_a_product_with_a_matrix_of_the_rows_own_is_refused() -> None:
    """A product by a matrix that is computed, as bmm's, is refused."""
    batched: dict[str, list[int | str]] = {"v": ["rows", 3, 2]}
    with pytest.raises(RefusedError, match="multiplies by v, which is no constant 2-D matrix"):
        check_operators(model(helper.make_node("MatMul", ["x", "v"], ["y"]), inputs=batched), "scorer")


def test_no_sum_over_an_axis_is_allowed_but_those_that_hold() -> None:
    """Of the reductions, only the maximum and logarithms of sums are allowed: sums are products with ones."""
    allowed = {name for name in ALLOWED if name.startswith("Reduce")}
    assert allowed == {"ReduceMax", "ReduceLogSum", "ReduceLogSumExp"}


@pytest.mark.parametrize("terms", [1, 2])
def test_the_logarithm_of_a_sum_has_one_term(terms: int) -> None:
    """A logarithm may be spelled as that of a sum of one term; a longer sum is refused, whatever it is called."""
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [-1])
    node = helper.make_node("ReduceLogSum", ["x", "axes"], ["y"], keepdims=0)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", 3, terms])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", 3])
    model = helper.make_model(helper.make_graph([node], "graph", [x], [y], [axes]))
    if terms == 1:
        check_operators(model, "scorer")
    else:
        with pytest.raises(RefusedError, match="ReduceLogSum .* sums 2 terms of x; expected one"):
            check_operators(model, "scorer")
