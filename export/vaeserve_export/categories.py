"""Categories as strings: LabelEncoder nodes joined to a traced graph, which knows their codes alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from vaeserve.signature import MISSING, MISSING_CODE, Column

# The domain's first opset whose LabelEncoder maps strings to integers and back.
ML_DOMAIN, ML_OPSET = "ai.onnx.ml", 2
CATEGORICAL = "categorical"
_CODES = "categorical_codes"


def take_strings(model: onnx.ModelProto, columns: Sequence[Column]) -> None:
    """Let the input `categorical` [rows, columns] be strings in place of codes, as `Signature.codes` makes them."""
    value = next((value for value in model.graph.input if value.name == CATEGORICAL), None)
    if value is None:
        return
    for node in model.graph.node:
        node.input[:] = [_CODES if name == CATEGORICAL else name for name in node.input]
    nodes = list(_by_column(columns, CATEGORICAL, _CODES, _encoder))
    model.graph.node.MergeFrom(_before(model, nodes))
    _change(model, value)


def give_strings(model: onnx.ModelProto, columns: Sequence[Column]) -> None:
    """Let the output `categorical` [rows, columns] be strings in place of codes."""
    value = next((value for value in model.graph.output if value.name == CATEGORICAL), None)
    if value is None:
        return
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [_CODES if name == CATEGORICAL else name for name in names]
    model.graph.node.extend(_by_column(columns, _CODES, CATEGORICAL, _decoder))
    _change(model, value)


def _before(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Empty a graph of its nodes, and return them behind `nodes`: each must stand behind those that it takes from."""
    nodes = [*nodes, *model.graph.node]
    del model.graph.node[:]
    return nodes


def _change(model: onnx.ModelProto, value: onnx.ValueInfoProto) -> None:
    value.type.tensor_type.elem_type = TensorProto.STRING
    model.opset_import.append(helper.make_opsetid(ML_DOMAIN, ML_OPSET))


def _by_column(
    columns: Sequence[Column], taken: str, given: str, encoder: Callable[[Column], dict[str, Any]]
) -> Iterator[onnx.NodeProto]:
    """Yield nodes that map each column of `taken` [rows, columns] by its own table, into `given` of that shape."""
    parts, mapped = ([f"{name}_{index}" for index in range(len(columns))] for name in (taken, given))
    if len(columns) == 1:
        parts, mapped = [taken], [given]
    else:
        yield helper.make_node("Split", [taken], parts, name=f"{taken}_split", axis=1, num_outputs=len(columns))
    for column, part, code in zip(columns, parts, mapped, strict=True):
        yield helper.make_node("LabelEncoder", [part], [code], name=f"{code}_of", domain=ML_DOMAIN, **encoder(column))
    if len(columns) > 1:
        yield helper.make_node("Concat", mapped, [given], name=f"{given}_joined", axis=1)


def _encoder(column: Column) -> dict[str, Any]:
    return {
        "keys_strings": [MISSING, *column.categories],
        "values_int64s": [MISSING_CODE, *range(len(column.categories))],
        "default_int64": len(column.categories),
    }


def _decoder(column: Column) -> dict[str, Any]:
    return {
        "keys_int64s": list(range(len(column.categories))),
        "values_strings": list(column.categories),
        "default_string": MISSING,
    }
