"""A serialized ONNX graph, read just as far as it must be before anything may run it.

A graph's weights may lie in files that it names, and ONNX Runtime has operators of its own that open files too. Newer
versions of it refuse files outside the working directory; older ones open any. So what a bundle's graphs may be is
narrow: ONNX's own operators in a row, with their weights within. The service has no `onnx` package; this needs none.
Sources: onnx/onnx.proto; protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from vaeserve.errors import BundleError

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})

# Field numbers of onnx.proto.
_MODEL_OPSETS, _MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 8, 7, 20, 25
_OPSET_DOMAIN = 1
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 12, 15
_VALUE_NAME = 1
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME = 1
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 13, 14

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_WIDTHS = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}

Field = tuple[int, int | memoryview]


class Node(NamedTuple):
    """A node of a graph: what it is, the names of what it takes and gives, and of its attributes."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: frozenset[str]


def nodes(content: bytes) -> Iterator[Node]:
    """Yield the nodes of a graph that `refuse_unsafe` let pass, each behind those whose outputs it takes."""
    for number, graph in _messages(memoryview(content)):
        for part, node in _messages(graph) if number == _MODEL_GRAPH else ():
            if part == _GRAPH_NODE:
                yield _node(node)


def giving(content: bytes, outputs: Collection[str]) -> bytes:
    """Return a graph that `refuse_unsafe` let pass with those of its `outputs` alone, and the nodes that they take."""
    wanted = set(outputs)
    for node in reversed([*nodes(content)]):
        if not wanted.isdisjoint(node.outputs):
            wanted.update(node.inputs)
    return b"".join(
        _field(number, _giving(value, outputs, wanted) if number == _MODEL_GRAPH else value)
        for number, value in _fields(memoryview(content))
    )


def _giving(graph: int | memoryview, outputs: Collection[str], wanted: set[str]) -> bytes:
    assert isinstance(graph, memoryview)  # noqa: S101 - a graph that passed is a message
    return b"".join(
        _field(number, value)
        for number, value in _fields(graph)
        if isinstance(value, int)
        or (number == _GRAPH_NODE and not wanted.isdisjoint(_node(value).outputs))
        or (number == _GRAPH_OUTPUT and _text(value, _VALUE_NAME) in outputs)
        or number not in (_GRAPH_NODE, _GRAPH_OUTPUT)
    )


def _node(node: memoryview) -> Node:
    texts: dict[int, list[str]] = {_NODE_NAME: [""], _NODE_OPERATOR: [""], _NODE_INPUT: [], _NODE_OUTPUT: []}
    attributes = set()
    for number, value in _messages(node):
        if number == _NODE_ATTRIBUTE:
            attributes.add(_text(value, _ATTRIBUTE_NAME))
        elif number in texts:
            texts[number].append(bytes(value).decode(errors="replace"))
    return Node(
        texts[_NODE_NAME][-1],
        texts[_NODE_OPERATOR][-1],
        tuple(texts[_NODE_INPUT]),
        tuple(texts[_NODE_OUTPUT]),
        frozenset(attributes),
    )


def refuse_unsafe(content: bytes, name: str) -> None:
    """Raise BundleError, naming the graph, unless it is ONNX's own operators in a row, with their weights within."""
    try:
        for number, value in _messages(memoryview(content)):
            if number == _MODEL_OPSETS:
                _refuse_domain(_text(value, _OPSET_DOMAIN), "an opset")
            elif number == _MODEL_GRAPH:
                _refuse_unsafe_graph(value)
            elif number in (_MODEL_TRAINING, _MODEL_FUNCTIONS):
                raise ValueError("has functions or training graphs of its own; expected a graph alone")
    except ValueError as error:
        raise BundleError(f"{name}.onnx: {error}") from None


def _refuse_unsafe_graph(graph: memoryview) -> None:
    for number, value in _messages(graph):
        if number == _GRAPH_NODE:
            _refuse_unsafe_node(value)
        elif number == _GRAPH_INITIALIZER:
            _refuse_external(value)
        elif number == _GRAPH_SPARSE:
            raise ValueError("has sparse weights; expected dense ones")


def _refuse_unsafe_node(node: memoryview) -> None:
    what = f"operator {_text(node, _NODE_OPERATOR)} ({_text(node, _NODE_NAME)})"
    for domain in _texts(node, _NODE_DOMAIN):
        _refuse_domain(domain, what)
    for number, attribute in _messages(node):
        if number != _NODE_ATTRIBUTE:
            continue
        for kind, value in _messages(attribute):
            if kind in _ATTRIBUTE_GRAPHS:
                raise ValueError(f"{what} has a graph within; expected no loops and no branches")
            if kind in _ATTRIBUTE_SPARSE:
                raise ValueError(f"{what} has sparse values; expected dense ones")
            if kind in _ATTRIBUTE_TENSORS:
                _refuse_external(value)


def _refuse_domain(domain: str, what: str) -> None:
    if domain not in DOMAINS:
        raise ValueError(f"{what} of the domain {domain!r}; expected ONNX's own, ai.onnx or ai.onnx.ml")


def _refuse_external(tensor: memoryview) -> None:
    for number, value in _fields(tensor):
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0):
            raise ValueError(f"the values of {_text(tensor, _TENSOR_NAME)!r} lie in another file; expected them within")


def _messages(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the fields of a message that are strings, packed numbers or messages themselves."""
    for number, value in _fields(message):
        if isinstance(value, memoryview):
            yield number, value


def _texts(message: memoryview, wanted: int) -> Iterator[str]:
    for number, value in _messages(message):
        if number == wanted:
            yield bytes(value[:80]).decode(errors="replace")


def _text(message: memoryview, wanted: int) -> str:
    return "".join(list(_texts(message, wanted))[-1:])


def _fields(message: memoryview) -> Iterator[Field]:
    """Yield a message's fields: their number, and what they hold as a number or as bytes.

    Raises ValueError for bytes that are none, and for spellings that ONNX never has and parsers may disagree on.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if not number or tag >= 2**32:
            raise ValueError("not an ONNX graph: a field that can't be")
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _LENGTH:
            length, at = _varint(message, at)
        elif kind in _WIDTHS:
            length = _WIDTHS[kind]
        else:
            raise ValueError(f"not an ONNX graph: a field of wire type {kind}")
        if at + length > len(message):
            raise ValueError("not an ONNX graph, or cut short")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number at a position, seven bits to a byte, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        value, at = value | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return value, at
    raise ValueError("not an ONNX graph, or cut short")


def _field(number: int, value: int | bytes | memoryview) -> bytes:
    """Return a field of a model or a graph as bytes: neither has numbers of a fixed width."""
    if isinstance(value, int):
        return _spelled(number << 3 | _VARINT) + _spelled(value)
    return _spelled(number << 3 | _LENGTH) + _spelled(len(value)) + value


def _spelled(value: int) -> bytes:
    """Return a number, seven bits to a byte."""
    spelled = bytearray()
    while value >= 0x80:
        spelled.append(value & 0x7F | 0x80)
        value >>= 7
    spelled.append(value)
    return bytes(spelled)
