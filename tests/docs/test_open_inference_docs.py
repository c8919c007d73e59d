"""docs/open-inference.md: its examples run, and its tables name what the service has."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format

from vaeserve.local import LocalService, serve_locally
from vaeserve_service.oip import grpc_service_pb2 as pb
from vaeserve_service.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub

PAGE = (Path(__file__).parents[2] / "docs" / "open-inference.md").read_text()


@pytest.fixture(scope="module")
def service(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A service of the page's model, a table of three columns."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(models.bundles["table3"].path, folder / "repository" / "fraud" / "1")
    with serve_locally(folder / "repository", log=folder / "log") as started:
        yield started


@pytest.fixture
def stub(service: LocalService) -> Iterator[Any]:
    """A stub of the protocol."""
    with grpc.insecure_channel(service.target) as channel:
        yield GRPCInferenceServiceStub(channel)


def test_tritonclients_example_runs(service: LocalService) -> None:
    """The Python on the page prints what it says it asks for, in a process of its own."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code = code.replace("localhost:8001", service.target)
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line[0].isalpha())
    assert list(said) == ["score", "p_value", "anomalous", "status", "attribution_feature"]
    assert said["status"] == "[0 1]"


def test_grpcurls_example_is_a_request(stub: Any) -> None:
    """What grpcurl would send, read from its JSON as it does, is answered."""
    (content, method) = re.findall(r"grpcurl -plaintext -d '(.*?)' localhost:8001 (\S+)", PAGE, re.DOTALL)[0]
    assert method == "inference.GRPCInferenceService/ModelInfer"
    answer = stub.ModelInfer(json_format.ParseDict(json.loads(content), pb.ModelInferRequest()), timeout=20)
    assert [output.name for output in answer.outputs] == ["score", "status"]
    assert np.frombuffer(answer.raw_output_contents[1], "<i4").tolist() == [0]


def test_the_page_names_all_outputs_parameters_and_calls(stub: Any) -> None:
    """Each that there is stands in a table of the page."""
    rows = re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    calls = {method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
    assert calls <= named
    unknown = {"x": pb.InferParameter(bool_param=True)}
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ModelInfer(pb.ModelInferRequest(model_name="fraud", parameters=unknown), timeout=20)
    known = str(refusal.value.details()).partition("expected one of ")[2].split(", ")
    assert len(known) == 7
    assert set(known) <= named
    for name in ("fraud", "fraud.encode"):
        outputs = stub.ModelMetadata(pb.ModelMetadataRequest(name=name), timeout=20).outputs
        assert all(f"`{output.name}`" in PAGE for output in outputs)
