"""The operators that a graph may use, for a row's bits must not depend on the rows beside it.

ONNX Runtime doesn't promise that. On 1.31 and 1.32 (CPU, one intra-op thread) a row alone and the same row in a batch
were seen to differ with Log, Softplus, Elu, Selu, Mish, Sin, Cos and Atan where the width is no multiple of the SIMD
width; with ReduceSum and ReduceMean over the last axis, or over 8 samples or more; with MatMul of batched 3-D
weights, or by a column that isn't constant, even one of ones; with any dynamic quantization. What is listed here held
for every shape tried.
"""

from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import numpy_helper

from vaeserve.errors import RefusedError

# fmt: off
# One rounding an element, which IEEE 754 fixes wherever the element lies; or none at all.
EXACT = frozenset({
    "Abs", "Add", "And", "ArgMax", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Div", "Equal",
    "Expand", "Flatten", "Floor", "Gather", "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "Less",
    "LessOrEqual", "Max", "Min", "Mul", "Neg", "Not", "Or", "Reshape", "Round", "Shape", "Sign", "Slice", "Split",
    "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where", "ai.onnx.ml.LabelEncoder",
})
# Approximations and sums that were measured to hold.
MEASURED = frozenset({
    "Conv", "ConvTranspose", "Erf", "Exp", "Gelu", "Gemm", "LayerNormalization", "LogSoftmax", "MatMul",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "Relu", "Sigmoid", "Softmax", "Tanh",
})
# fmt: on
ALLOWED = EXACT | MEASURED


def check_operators(model: onnx.ModelProto, name: str) -> None:
    """Raise RefusedError, naming the operator, if `model` has one whose bits may depend on a row's batch."""
    for node in model.graph.node:
        operator = operator_of(node)
        if operator not in ALLOWED:
            raise RefusedError(
                f"{name}.onnx: operator {operator} ({node.name}) may give a row other bits in another batch; expected "
                f"one of {', '.join(sorted(ALLOWED))}"
            )
    shapes = _shapes(model)
    for node, why in (*_loose_products(model, shapes), *_long_logarithms(model, shapes)):
        raise RefusedError(f"{name}.onnx: {node.op_type} ({node.name}) {why}")


def count_operators(model: onnx.ModelProto) -> dict[str, int]:
    """Return how often a graph has which operator, by name."""
    return dict(sorted(Counter(map(operator_of, model.graph.node)).items()))


def operator_of(node: onnx.NodeProto) -> str:
    """Return a node's operator; one outside ONNX's own domain with its domain."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


Shapes = dict[str, list[int | None]]


def _shapes(model: onnx.ModelProto) -> Shapes:
    """Return the shapes of all values, None for a length that isn't fixed."""
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    } | {name: list(shape) for name, shape in _constants(model).items()}


def _constants(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = next((a for a in node.attribute if a.name == "value"), None)
            constants[node.output[0]] = numpy_helper.to_array(value.t).shape if value else ()
    return constants


def _loose_products(model: onnx.ModelProto, shapes: Shapes) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Yield matrix products other than by a constant 2-D matrix, or of one fixed row by each row's own matrix."""
    constants = _constants(model)
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        left, right = node.input[:2]
        constant_weights = len(constants.get(right, ())) == 2
        one_fixed_row = len(shapes.get(left, ())) == 2 and shapes[left][0] == 1
        if not constant_weights and not one_fixed_row:
            yield node, f"multiplies by {right}, which is no constant 2-D matrix; expected one"


def _long_logarithms(model: onnx.ModelProto, shapes: Shapes) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Yield logarithms of sums of more than one term: of one they are the logarithm, of more a sum by another name."""
    for node in model.graph.node:
        if node.op_type == "ReduceLogSum" and shapes.get(node.input[0], [None])[-1] != 1:
            yield node, f"sums {shapes.get(node.input[0], [None])[-1]} terms of {node.input[0]}; expected one"
