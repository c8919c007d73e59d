"""What a serialized graph may be: ONNX's own operators in a row, with their weights within."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vaeserve.errors import BundleError
from vaeserve.graph import Node, giving, nodes, refuse_unsafe
from vaeserve_service.runtime import Graph

WEIGHTS = np.ones((3, 2), np.float32)


def plain() -> onnx.ModelProto:
    """Return a model of one product."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def external(location: str) -> onnx.TensorProto:
    """Return weights that lie in another file."""
    tensor = numpy_helper.from_array(WEIGHTS, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "24"}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def external_weights(model: onnx.ModelProto, location: str = "weights.bin") -> None:
    """Let the weights lie in another file."""
    model.graph.initializer[0].CopyFrom(external(location))


def external_constant(model: onnx.ModelProto) -> None:
    """Let a constant's value lie in another file."""
    del model.graph.initializer[:]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=external("weights.bin")))


def external_constants(model: onnx.ModelProto) -> None:
    """Let one of an attribute's tensors lie in another file."""
    tensors = [numpy_helper.from_array(WEIGHTS, "v"), external("weights.bin")]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], values=tensors))


def location_alone(model: onnx.ModelProto) -> None:
    """Name a file for weights that are there."""
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def foreign_operator(model: onnx.ModelProto) -> None:
    """Have an operator of ONNX Runtime's own."""
    model.graph.node.append(helper.make_node("EPContext", ["x"], ["z"], name="planted", domain="com.microsoft"))


def foreign_opset(model: onnx.ModelProto) -> None:
    """Import the operators of nobody."""
    model.opset_import.append(helper.make_opsetid("evil", 1))


def function(model: onnx.ModelProto) -> None:
    """Define what an operator does."""
    body = [helper.make_node("Neg", ["a"], ["b"])]
    model.functions.append(helper.make_function("", "Relu", ["a"], ["b"], body, [helper.make_opsetid("", 21)]))


def branch(model: onnx.ModelProto) -> None:
    """Have a graph within the graph."""
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=model.graph, else_branch=model.graph))


def sparse_weights(model: onnx.ModelProto) -> None:
    """Have weights of another kind, which may lie in another file too."""
    values = helper.make_sparse_tensor(external("weights.bin"), numpy_helper.from_array(np.arange(6), "i"), [3, 2])
    model.graph.sparse_initializer.append(values)


def test_a_plain_graph_passes() -> None:
    """A product by weights within passes, and runs."""
    refuse_unsafe(plain().SerializeToString(), "scorer")
    out = Graph(plain().SerializeToString(), name="scorer").run({"x": np.ones((1, 3), np.float32)}, ["y"])
    assert out["y"].tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_weights, "scorer.onnx: the values of 'w' lie in another file; expected them within"),
        (external_constant, "the values of 'w' lie in another file"),
        (external_constants, "the values of 'w' lie in another file"),
        (location_alone, "the values of 'w' lie in another file"),
        (foreign_operator, r"operator EPContext \(planted\) of the domain 'com.microsoft'; expected ONNX's own"),
        (foreign_opset, "an opset of the domain 'evil'; expected ONNX's own, ai.onnx or ai.onnx.ml"),
        (function, "has functions or training graphs of its own; expected a graph alone"),
        (branch, r"operator If \(\) has a graph within; expected no loops and no branches"),
        (sparse_weights, "has sparse weights; expected dense ones"),
    ],
)
def test_what_reaches_out_of_a_graph_is_refused(change: Callable[[onnx.ModelProto], None], message: str) -> None:
    """Weights in other files, operators of other domains, and graphs within are refused before anything runs them."""
    model = plain()
    change(model)
    with pytest.raises(BundleError, match=message):
        Graph(model.SerializeToString(), name="scorer")


@pytest.mark.parametrize("location", ["{file}", "weights.bin", "../weights.bin", "link.bin"])
def test_no_file_is_read_for_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    """Weights in a file are refused wherever it lies: by an absolute path, here, above or behind a link."""
    (tmp_path / "here").mkdir()
    for folder in (tmp_path, tmp_path / "here"):
        (folder / "weights.bin").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "here" / "link.bin").symlink_to(tmp_path / "weights.bin")
    monkeypatch.chdir(tmp_path / "here")
    model = plain()
    external_weights(model, location.format(file=tmp_path / "weights.bin"))
    with pytest.raises(BundleError, match="lie in another file"):
        Graph(model.SerializeToString(), name="scorer")


@pytest.mark.parametrize("content", [b"\xff", b"\x3b", b"\x3a\x7f", b"ORTM" * 8, b"\x80" * 11 + b"\x01", b"\x00\x00"])
def test_bytes_that_are_no_graph_are_refused(content: bytes) -> None:
    """Bytes that are no protobuf message, or that parsers could read in two ways, are refused."""
    with pytest.raises(BundleError, match=r"scorer\.onnx: not an ONNX graph"):
        refuse_unsafe(content, "scorer")


def test_a_graph_under_a_tag_of_more_than_32_bits_is_refused() -> None:
    """A tag that some parsers would cut to 32 bits, and read the graph behind it, is refused."""
    model = plain()
    external_weights(model)
    graph = model.graph.SerializeToString()
    hidden = b"\xba\x80\x80\x80\x10" + bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7]) + graph
    with pytest.raises(BundleError, match=r"scorer\.onnx: not an ONNX graph: a field that can't be"):
        refuse_unsafe(hidden, "scorer")


def test_a_name_that_is_no_text_is_refused() -> None:
    """An output whose name is no UTF-8, which ONNX Runtime loads, is the graph's fault."""
    content = plain().SerializeToString().replace(b"\x01y", b"\x01\xe5")
    with pytest.raises(BundleError, match=r"scorer\.onnx: ONNX Runtime .* can't load it"):
        Graph(content, name="scorer")


@pytest.mark.parametrize("kind", ["table7", "mixed", "conv"])
def test_exported_graphs_pass(models: Any, kind: str) -> None:
    """What the exporter writes is of this narrow form."""
    for name in ("encoder", "decoder", "scorer"):
        refuse_unsafe(models.bundles[kind].graph(name), name)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_nothing_that_onnx_reads_as_unsafe_passes(data: st.DataObject) -> None:
    """Where ONNX's own parser finds weights elsewhere or other domains in changed bytes, they were refused."""
    model = plain()
    data.draw(st.sampled_from([external_weights, foreign_operator, location_alone]))(model)
    content = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        refuse_unsafe(bytes(content), "scorer")
    except BundleError:
        return
    try:
        read = onnx.load_model_from_string(bytes(content))
    except Exception:
        return
    assert not [t for t in read.graph.initializer if t.external_data or t.data_location == TensorProto.EXTERNAL]
    assert not [node for node in read.graph.node if node.domain not in ("", "ai.onnx", "ai.onnx.ml")]


def test_nodes_are_read_with_what_they_take_and_give() -> None:
    """A graph's nodes come in its order, with their names whole, and none from where there is no graph."""
    model, long = plain(), "n" * 200
    model.graph.node.append(helper.make_node("Split", ["y"], ["", "z"], name=long, axis=1, num_outputs=2))
    assert list(nodes(model.SerializeToString())) == [
        Node("product", "MatMul", ("x", "w"), ("y",), frozenset()),
        Node(long, "Split", ("y",), ("", "z"), frozenset({"axis", "num_outputs"})),
    ]
    assert not list(nodes(b""))


def test_a_graph_of_fewer_outputs_has_the_nodes_that_they_take() -> None:
    """Nothing else of it changes, and all outputs are all of it."""
    model = plain()
    model.graph.node.append(helper.make_node("Neg", ["y"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["rows", 2]))
    content = model.SerializeToString()
    assert onnx.load_from_string(giving(content, ("y", "z"))) == model
    assert onnx.load_from_string(giving(content, ("z",))).graph.node == model.graph.node
    assert onnx.load_from_string(giving(content, ("y",))) == plain()
