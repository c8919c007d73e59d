"""What the Open Inference Protocol tells of an endpoint: its metadata, its configuration and its statistics."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from vaeserve.interface import Values
from vaeserve.manifest import Manifest
from vaeserve_service.config import ServiceConfig
from vaeserve_service.endpoints import Endpoint
from vaeserve_service.oip import grpc_service_pb2 as pb
from vaeserve_service.oip import model_config_pb2 as config_pb
from vaeserve_service.record import Duration, Tally

_LARGEST_INT32 = 2**31 - 1
PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"

# The protocol's names where they aren't ours, and Triton's enums.
_DATATYPES = {"FLOAT32": "FP32", "FLOAT64": "FP64", "STRING": "BYTES"}
_TYPES = {
    "FLOAT32": config_pb.TYPE_FP32,
    "FLOAT64": config_pb.TYPE_FP64,
    "INT32": config_pb.TYPE_INT32,
    "UINT8": config_pb.TYPE_UINT8,
    "BOOL": config_pb.TYPE_BOOL,
    "STRING": config_pb.TYPE_STRING,
}


def model_metadata(endpoint: Endpoint, versions: Sequence[str]) -> pb.ModelMetadataResponse:
    """Return an endpoint's signature, and what its manifest says that a caller may want to know."""
    return pb.ModelMetadataResponse(
        name=endpoint.name,
        versions=versions,
        platform=PLATFORM,
        inputs=_tensors(endpoint.inputs),
        outputs=_tensors(endpoint.outputs),
        properties=_properties(endpoint.model.manifest),
    )


def _tensors(values: Values) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    return [
        pb.ModelMetadataResponse.TensorMetadata(
            name=name, datatype=_DATATYPES.get(value.dtype, value.dtype), shape=value.shape
        )
        for name, value in values.items()
    ]


def _properties(manifest: Manifest) -> dict[str, str]:
    """Return text, JSON where a property has parts."""
    calibration = {
        "rows": manifest.calibration.rows,
        "num_samples": manifest.num_samples,
        "false_positive_rate": manifest.false_positive_rate,
        "quantiles": manifest.calibration.model_dump(mode="json")["quantiles"],
    }
    properties = {
        "latent_dim": str(manifest.latent_dim),
        "likelihood": ", ".join(manifest.likelihoods),
        "prior": manifest.prior,
        "calibration": json.dumps(calibration),
    }
    columns = [asdict(column) for column in manifest.signature.columns]
    return properties | ({"columns": json.dumps(columns)} if columns else {})


def model_config(endpoint: Endpoint, config: ServiceConfig) -> config_pb.ModelConfig:
    """Return how an endpoint is served: to Triton a model with dynamic batching, and priorities without effect."""
    batching = config_pb.ModelDynamicBatching(
        preferred_batch_size=[config.batching.max_rows],
        max_queue_delay_microseconds=round(config.batching.max_delay_ms * 1000),
        default_queue_policy=config_pb.ModelQueuePolicy(
            timeout_action=config_pb.ModelQueuePolicy.REJECT, allow_timeout_override=True
        ),
    )
    properties = _properties(endpoint.model.manifest)
    return config_pb.ModelConfig(
        name=endpoint.name,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=min(endpoint.model.most_rows(endpoint.operation), _LARGEST_INT32),
        input=[
            config_pb.ModelInput(name=name, data_type=_TYPES[value.dtype], dims=value.shape[1:])
            for name, value in endpoint.inputs.items()
        ],
        output=_config_outputs(endpoint.outputs),
        dynamic_batching=batching,
        parameters={name: config_pb.ModelParameter(string_value=value) for name, value in properties.items()},
        model_transaction_policy=config_pb.ModelTransactionPolicy(decoupled=False),
    )


def _config_outputs(values: Values) -> list[config_pb.ModelOutput]:
    """Return outputs as Triton has them: dims are never none, so that one number a row is a reshaped one."""
    outputs = []
    for name, value in values.items():
        output = config_pb.ModelOutput(name=name, data_type=_TYPES[value.dtype], dims=value.shape[1:] or [1])
        if len(value.shape) == 1:
            output.reshape.SetInParent()
        outputs.append(output)
    return outputs


def model_statistics(endpoint: Endpoint, tally: Tally) -> pb.ModelStatistics:
    """Return what became of an endpoint's requests; joining rows and interpreting scores is within compute_infer."""
    computed = tally.computed.count
    nothing = pb.StatisticDuration(count=computed)
    ended = time.time() - (time.perf_counter() - tally.ended) if tally.ended else 0.0
    batches = sorted(tally.batches.copy().items())
    return pb.ModelStatistics(
        name=endpoint.name,
        version=endpoint.model.version,
        last_inference=round(ended * 1e3),
        inference_count=sum(rows * duration.count for rows, duration in batches),
        execution_count=sum(duration.count for _, duration in batches),
        inference_stats=pb.InferStatistics(
            success=_duration(tally.computed),
            fail=_duration(tally.failed),
            queue=_duration(tally.queued),
            compute_input=nothing,
            compute_infer=_duration(Duration(computed, tally.computing)),
            compute_output=nothing,
        ),
        batch_stats=[_batches(rows, duration) for rows, duration in batches],
    )


def _batches(rows: int, duration: Duration) -> pb.InferBatchStatistics:
    nothing = pb.StatisticDuration(count=duration.count)
    return pb.InferBatchStatistics(
        batch_size=rows, compute_input=nothing, compute_infer=_duration(duration), compute_output=nothing
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=round(duration.seconds * 1e9))
