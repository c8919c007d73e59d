"""Which nodes may be on the CPU."""

from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from vaeserve.errors import ConfigError
from vaeserve.graph import nodes
from vaeserve.interface import Value
from vaeserve_service.placement import misplaced
from vaeserve_service.runtime import VERSION, Graph

# What ONNX Runtime 1.31 leaves on the CPU of the graphs of every kind of model, as its CUDA provider's kernels have it.
ON_CPU_BESIDE_CUDA = {"Cast", "Concat", "LabelEncoder", "Split", "Squeeze"}
INPUTS = {"numeric": Value("FLOAT32", (-1, 3)), "categorical": Value("STRING", (-1, 2))}


def small_graph() -> bytes:
    """Return a graph with strings at both ends, numbers between, and a shape that is computed."""

    def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
        domain = "ai.onnx.ml" if operator == "LabelEncoder" else ""
        return helper.make_node(
            operator, inputs.split(), outputs.split(), outputs.split()[0], domain=domain, **attributes
        )

    def value(name: str, dtype: int, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, ["rows", width])

    letters, numbers = {"keys_strings": ["a"], "values_int64s": [1]}, {"keys_int64s": [1], "values_strings": ["a"]}
    inner = [
        node("Split", "categorical", "first second", axis=1, num_outputs=2),
        node("LabelEncoder", "first", "code", **letters),
        node("Equal", "first second", "same"),
        node("Not", "same", "other"),
        node("Cast", "code", "number", to=TensorProto.FLOAT),
        node("Add", "numeric number", "sum"),
        node("Shape", "sum", "shape", start=0, end=1),
        node("Constant", "", "three", value_ints=[3]),
        node("Concat", "shape three", "full_shape", axis=0),
        node("Constant", "", "half", value_floats=[0.5]),
        node("Expand", "half full_shape", "halves"),
        node("Mul", "sum halves", "product"),
        node("Cast", "shape", "count", to=TensorProto.FLOAT),
        node("Div", "product count", "mean"),
        node("Mul", "halves half", "quarters"),
        node("Mul", "numeric count", "scaled"),
        node("LabelEncoder", "code", "category", **numbers),
        node("Concat", "category category", "categories", axis=1),
    ]
    graph = helper.make_graph(
        inner,
        "small",
        [value("numeric", TensorProto.FLOAT, 3), value("categorical", TensorProto.STRING, 2)],
        [
            value("mean", TensorProto.FLOAT, 3),
            value("quarters", TensorProto.FLOAT, 3),
            value("scaled", TensorProto.FLOAT, 3),
            value("categories", TensorProto.STRING, 2),
            value("other", TensorProto.BOOL, 1),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 2)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def test_strings_and_lengths_may_be_on_the_cpu_and_nothing_else() -> None:
    """Whatever takes or gives strings may, and what computes lengths; what depends on a row's values may not."""
    content = small_graph()
    names = [node.name for node in nodes(content) if node.operator != "Constant"]
    refused = ["other", "number", "sum", "halves", "product", "mean", "quarters", "scaled"]
    assert misplaced(content, names, inputs=INPUTS) == refused
    assert not misplaced(content, set(names) - set(refused), inputs=INPUTS)


@pytest.mark.parametrize("planted", ["sum", "halves", "quarters", "scaled", "mean", "number", "other"])
def test_one_node_on_the_cpu_is_enough(planted: str) -> None:
    """One node of numbers is found among any that may be there, as is one that the graph never had."""
    content = small_graph()
    assert misplaced(content, ["first", planted, "shape"], inputs=INPUTS) == [planted]
    assert misplaced(content, ["first", "fused", "shape"], inputs=INPUTS) == ["fused"]


def test_a_name_that_two_nodes_have_is_refused_for_either() -> None:
    """A node of numbers can't hide behind one of strings."""
    model = onnx.load_from_string(small_graph())
    sum_ = next(node for node in model.graph.node if node.name == "sum")
    sum_.name = "first"
    assert misplaced(model.SerializeToString(), ["first"], inputs=INPUTS) == ["first"]


class Placed:
    """A session with the nodes that ONNX Runtime recorded, on the CPU or on a provider as a test plants them."""

    def __init__(self, *, on_cpu: set[str]) -> None:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(small_graph(), options, providers=providers)
        self._on_cpu = on_cpu

    def get_providers(self) -> list[str]:
        """Return CUDA's provider, and the CPU's that each session has."""
        return ["CUDAExecutionProvider", *self._session.get_providers()]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        """Return the recorded parts, of a node each on the CPU."""
        parts = self._session.get_provider_graph_assignment_info()
        return [Part(node, on_cpu=node.name in self._on_cpu) for part in parts for node in part.get_nodes()]


class Part:
    """A node of the graph as the part that a provider runs."""

    def __init__(self, node: Any, *, on_cpu: bool) -> None:
        self.ep_name = "CPUExecutionProvider" if on_cpu else "CUDAExecutionProvider"
        self._node = node

    def get_nodes(self) -> list[Any]:
        """Return the part's nodes."""
        return [self._node]


@pytest.fixture
def graph() -> Graph:
    """A graph on the CPU."""
    return Graph(small_graph(), name="small")


def test_a_graph_on_another_provider_is_refused(graph: Graph) -> None:
    """A session that ONNX Runtime quietly gave the CPU alone is an error that says what to install."""
    with pytest.raises(ConfigError, match=r"device cuda: ONNX Runtime fell back to CPUExecutionProvider; .* install"):
        graph._refuse_on_cpu(small_graph(), "cuda")


def test_a_graph_with_its_numbers_on_the_device_is_taken(graph: Graph) -> None:
    """Real placement data, with strings and lengths alone on the CPU, passes."""
    graph._session = Placed(on_cpu={"first", "code", "category", "categories", "same", "full_shape"})
    graph._refuse_on_cpu(small_graph(), "cuda")


def test_a_graph_with_numbers_on_the_cpu_is_refused(graph: Graph) -> None:
    """One operator on the CPU beside them is an error that names it."""
    graph._session = Placed(on_cpu={"first", "sum", "code"})
    with pytest.raises(ConfigError) as caught:
        graph._refuse_on_cpu(small_graph(), "cuda")
    assert str(caught.value) == (
        f"device cuda: small.onnx: ONNX Runtime {VERSION} runs 1 of its nodes on the CPU: Add (sum); expected strings "
        "and lengths of shapes alone: install a newer onnxruntime-gpu"
    )


def test_of_every_kind_of_model_only_strings_and_lengths_may_be(models: Any) -> None:
    """Of real graphs few operators may be on the CPU, and those are what a CUDA session leaves there."""
    for bundle in models.bundles.values():
        for name in ("encoder", "decoder", "scorer"):
            content = bundle.graph(name)
            inputs = Graph(content, name=name).takes
            operators = {node.name: node.operator for node in nodes(content) if node.operator != "Constant"}
            refused = set(misplaced(content, operators, inputs=inputs))
            assert {operators[node] for node in operators.keys() - refused} <= ON_CPU_BESIDE_CUDA | {"Gather", "Shape"}
            assert len(refused) > len(operators) / 2
