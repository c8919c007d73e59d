"""The server that a user would write: grpc.aio, and one `session.run` a request, on a thread or on the event loop.

It answers `vaeserve.v1.VaeService/Score` for one bundle, of a table of numbers or of images, with the default options
alone.
`python -m benchmarks.naive BUNDLE thread|loop` prints the port that it took.
"""

import asyncio
import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import grpc
import numpy as np
import onnxruntime as ort

from vaeserve.bundle import Bundle
from vaeserve.scores import Bound
from vaeserve.v1 import vae_pb2 as pb

OUTPUTS = ["elbo", "log_likelihood", "kl", "status"]


class Scorer:
    """A bundle's scorer behind one RPC."""

    def __init__(self, bundle: Bundle, *, on: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # a pool of threads inside each of many small calls would only cost
        self._session = ort.InferenceSession(bundle.graph("scorer"), options, providers=["CPUExecutionProvider"])
        self._on_thread = on == "thread"
        self._noise = bundle.noise[: bundle.manifest.num_samples]
        self._calibration = bundle.calibration.scores[Bound.ELBO]
        self._rate = bundle.manifest.false_positive_rate
        self._dtype = np.uint8 if bundle.manifest.signature.inputs[0].dtype == "UINT8" else np.float32
        self._model = pb.ModelSpec(name=bundle.manifest.name, version=bundle.version)

    async def score(self, request: pb.ScoreRequest, _: object) -> pb.ScoreResponse:
        """Answer a request."""
        tensor = request.inputs[0]
        rows = np.frombuffer(tensor.data, self._dtype).reshape(tensor.shape)
        feeds = {tensor.name: rows, "noise": self._noise}
        if self._on_thread:
            outputs = await asyncio.to_thread(self._session.run, OUTPUTS, feeds)
        else:
            outputs = self._session.run(OUTPUTS, feeds)
        elbo, log_likelihood, kl, status = outputs
        calibrated = len(self._calibration)
        p_value = (1 + calibrated - np.searchsorted(self._calibration, -elbo)) / (calibrated + 1)
        return pb.ScoreResponse(
            model=self._model,
            score=(-elbo).tolist(),
            elbo=elbo.tolist(),
            log_likelihood=log_likelihood.tolist(),
            kl=kl.tolist(),
            p_value=p_value.tolist(),
            anomalous=(p_value <= self._rate).tolist(),
            status=status.tolist(),
        )


async def serve(bundle: Bundle, *, on: str) -> None:
    """Serve on a free port of loopback until killed."""
    score = grpc.unary_unary_rpc_method_handler(
        Scorer(bundle, on=on).score,
        request_deserializer=pb.ScoreRequest.FromString,
        response_serializer=pb.ScoreResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("vaeserve.v1.VaeService", {"Score": score}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(Bundle.open(sys.argv[1]), on=sys.argv[2]))
