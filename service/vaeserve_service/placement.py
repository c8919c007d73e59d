"""What may run on the CPU though another device was asked for: strings, and the lengths of shapes.

No device but the CPU knows strings. And ONNX Runtime itself puts what computes with a few lengths on the CPU, where
shapes are needed.
"""

from collections.abc import Iterable, Iterator

from vaeserve.graph import Node, nodes
from vaeserve.interface import Values

_LENGTHS = frozenset({"Shape", "Size"})
# What makes a tensor of a shape from its lengths: no length any more.
_FILLED = frozenset({"ConstantOfShape", "Expand"})
# What gives strings back that it took.
_MOVES = frozenset({"Concat", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"})


def misplaced(content: bytes, on_cpu: Iterable[str], *, inputs: Values) -> list[str]:
    """Return those of the nodes `on_cpu`, by name, that neither take or give strings nor compute lengths of shapes.

    content: the graph, serialized, that `refuse_unsafe` let pass. A node that it hasn't got is one of them too.
    """
    graph = list(nodes(content))
    allowed = [*_with_strings(graph, inputs), *_of_lengths(graph, inputs)]
    elsewhere = {node.name for node in graph if node not in allowed}
    names = {node.name for node in graph}
    return [name for name in on_cpu if name in elsewhere or name not in names]


def _with_strings(graph: list[Node], inputs: Values) -> Iterator[Node]:
    strings = {name for name, value in inputs.items() if value.dtype == "STRING"}
    for node in graph:
        taken = not strings.isdisjoint(node.inputs)
        given = node.operator == "LabelEncoder" and "values_strings" in node.attributes
        if given or (taken and node.operator in _MOVES):
            strings.update(node.outputs)
        if taken or given:
            yield node


def _of_lengths(graph: list[Node], inputs: Values) -> Iterator[Node]:
    # All but constants, which lie on either device.
    computed = {*inputs, *(name for node in graph if node.operator != "Constant" for name in node.outputs)}
    lengths: set[str] = set()
    for node in graph:
        taken = computed.intersection(node.inputs)
        if node.operator in _LENGTHS or (taken and taken <= lengths and node.operator not in _FILLED):
            lengths.update(node.outputs)
            yield node
