"""Triton's own client as an operator: run by test_open_inference.py in a process of its own."""

import os
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def infer(client: Any) -> Any:
    """Score a row."""
    rows = triton.InferInput("numeric", [1, 3], "FP32")
    rows.set_data_from_numpy(np.zeros((1, 3), np.float32))
    return client.infer("table3", [rows]).get_response()


def test_an_operator_unloads_and_loads() -> None:
    """A model goes with its operations, and comes back with them; what can't be is said."""
    with triton.InferenceServerClient(os.environ["PEER_TARGET"]) as client:
        assert infer(client).model_version == "1"
        client.unload_model("table3")
        assert not client.is_model_ready("table3.encode")
        assert client.is_server_ready()
        assert list(client.get_model_repository_index().models) == []
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            infer(client)
        client.load_model("table3")
        assert client.is_model_ready("table3.encode")
        assert infer(client).model_version == "1"
        asked: Any
        for asked, said in (
            (lambda: client.load_model("fraud"), "[StatusCode.NOT_FOUND] model: 'fraud'; the repository has none"),
            (lambda: client.unload_model("fraud"), "[StatusCode.NOT_FOUND]"),
            (lambda: client.load_model("table3", config="{}"), "[StatusCode.INVALID_ARGUMENT] parameters: 'config'"),
            (lambda: client.load_model("table3.encode"), "expected a model, whose operations go with it"),
            (lambda: client.load_model(""), "[StatusCode.INVALID_ARGUMENT] model_name: ''"),
        ):
            with pytest.raises(InferenceServerException) as refusal:
                asked()
            assert said in str(refusal.value)
