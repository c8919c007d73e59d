"""A model that serves: a bundle, its sessions, and the batcher in front of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from vaeserve.bundle import Bundle
from vaeserve.errors import OutOfRangeError
from vaeserve.latents import Interpolation, check_latents, one_latent, path, prior_draws
from vaeserve.scores import Bound, ScoreOptions, Scores, count_samples, draw_noise, interpret
from vaeserve_service.batcher import Batcher
from vaeserve_service.call import CURRENT
from vaeserve_service.config import ServiceConfig
from vaeserve_service.packed import records
from vaeserve_service.requests import Batch, Request
from vaeserve_service.runners import Runners
from vaeserve_service.runtime import Arrays, Runtime

log = structlog.get_logger()

# About what a row's scores take in a response, and each of its attributions, with a name.
_SCORE_BYTES = 32
_ATTRIBUTION_BYTES = 32


OperationName = Literal["score", "encode", "decode", "reconstruct"]


class Operation(NamedTuple):
    """What requests must share to be joined."""

    name: OperationName
    options: ScoreOptions = ScoreOptions()


class Model:
    """One model version, ready to answer."""

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        runtime: Runtime,
        *,
        config: ServiceConfig,
        runners: Runners,
        on_batch: Callable[[str, Batch], None] = lambda *_: None,
        on_scores: Callable[[Scores], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.version = bundle.version
        self.manifest = bundle.manifest
        self.manifest_json = bundle.manifest_json.decode()
        self.calibration = bundle.calibration
        self._signature = bundle.manifest.signature
        self._noise = bundle.noise
        self._limits = config.limits
        self.encoder_outputs, self.decoder_outputs = runtime.gives("encoder"), runtime.gives("decoder")
        self._row_bytes = {"encode": runtime.row_bytes("encoder"), "decode": runtime.row_bytes("decoder")}
        self._row_bytes["reconstruct"] = self._row_bytes["decode"]
        self._batcher: Batcher[Operation] = Batcher(
            _Graphs(runtime, bundle, bundle.version, on_scores),
            runners=runners,
            max_rows=config.batching.max_rows,
            max_delay_s=config.batching.max_delay_ms / 1000,
            queue_rows=config.limits.queue_rows,
            queue_bytes=config.limits.queue_bytes,
            on_batch=lambda operation, batch: on_batch(operation.name, batch),
        )

    @property
    def waiting_rows(self) -> int:
        """How many rows wait for a runner."""
        return self._batcher.waiting_rows

    def encode(self, inputs: Arrays) -> Request:
        """Have rows encoded; its outputs are their `mean` and `log_variance` [rows, latent] and `status` [rows]."""
        return self._submit(Operation("encode"), inputs)

    def reconstruct(self, inputs: Arrays) -> Request:
        """Have rows reconstructed; its outputs are the decoder's at their posterior means, and `status` [rows]."""
        return self._submit(Operation("reconstruct"), inputs)

    def decode(self, latents: NDArray[Any]) -> Request:
        """Have `latents` [rows, latent] decoded; its outputs are the decoder's.

        Raises InvalidInputError for latents of another form, OutOfRangeError for such as lie past LARGEST_LATENT.
        """
        self._refuse_too_many("rows", len(latents), Operation("decode"))
        return self._enqueue(Operation("decode"), {"z": check_latents(latents, self.manifest.latent_dim)})

    async def generate(self, count: int, *, seed: int, temperature: float) -> Arrays:
        """Return the decoder's outputs for `count` of `prior_draws`.

        Raises OutOfRangeError for more than a request may have, InvalidInputError as `prior_draws` does.
        """
        self._refuse_too_many("count", count, Operation("decode"))
        return await self.decode(prior_draws(count, self.manifest.latent_dim, seed=seed, temperature=temperature))

    async def interpolate(
        self, start: NDArray[Any], end: NDArray[Any], *, steps: int, method: Interpolation
    ) -> tuple[Arrays, NDArray[np.float32]]:
        """Return the decoder's outputs along the `path` between two latents, and its latents [steps, latent].

        Raises OutOfRangeError for more steps than a request may have rows, and as `path` does.
        """
        self._refuse_too_many("steps", steps, Operation("decode"))
        latent_dim = self.manifest.latent_dim
        first, last = one_latent(start, "start", latent_dim), one_latent(end, "end", latent_dim)
        latents = path(first, last, steps=steps, method=method)
        return await self.decode(latents), latents

    def most_rows(self, operation: OperationName) -> int:
        """Return how many rows a request may have, and its answer, if nothing else is asked for."""
        row_bytes = self._row_bytes.get(operation) or self._score_bytes(ScoreOptions())
        return min(self._limits.request_rows, self._limits.response_bytes // row_bytes)

    def score(self, inputs: Arrays, options: ScoreOptions) -> Request:
        """Have rows scored; its outputs are `packed`'s `records` [rows], and `attributions` [rows] where asked for.

        Raises InvalidInputError for a rate that the calibration can't support, OutOfRangeError for more noise points
        than there are; before anything is computed.
        """
        self.calibration.rate(options)
        samples = count_samples(self._noise, options, default=self.manifest.num_samples)
        # A row of more samples than the default counts as so many more rows.
        cost = math.ceil(samples / self.manifest.num_samples)
        return self._submit(Operation("score", options), inputs, cost=cost)

    def _submit(self, operation: Operation, inputs: Arrays, *, cost: int = 1) -> Request:
        """Have rows computed, each counted as `cost` rows; too many are refused before they are looked at."""
        for array in inputs.values():
            self._refuse_too_many("rows", len(array), operation, cost=cost)
        return self._enqueue(operation, self._signature.check(inputs), cost=cost)

    def _enqueue(self, operation: Operation, inputs: Arrays, *, cost: int = 1) -> Request:
        request = self._batcher.submit(operation, inputs, cost=cost)
        call = CURRENT.get()
        if call is not None and call.on_computed:
            request.add_done_callback(call.on_computed)
        return request

    def _refuse_too_many(self, name: str, rows: int, operation: Operation, *, cost: int = 1) -> None:
        """Raise OutOfRangeError for more rows than a request, or its response, may have."""
        said = f"{name}: {rows}" if name == "rows" else f"{name}: {rows} rows"
        if rows * cost > self._limits.request_rows:
            times = f", each counted {cost} times for its samples" if cost > 1 else ""
            raise OutOfRangeError(f"{said} in a request{times}; the service takes {self._limits.request_rows} at most")
        row_bytes = self._row_bytes.get(operation.name) or self._score_bytes(operation.options)
        if rows * row_bytes > self._limits.response_bytes:
            most = self._limits.response_bytes
            raise OutOfRangeError(
                f"{said} in a response, of {row_bytes} bytes each; the service gives {most} bytes, "
                f"{most // row_bytes} rows, at most"
            )

    def _score_bytes(self, options: ScoreOptions) -> int:
        """Return about how much a row's scores take in a response."""
        return _SCORE_BYTES + _ATTRIBUTION_BYTES * min(options.top_features, self.manifest.features)


@dataclass(frozen=True)
class _Graphs:
    """What a model's runners call. It knows no model, which so is freed with its last call, not by the collector."""

    runtime: Runtime
    bundle: Bundle
    version: str  # the bundle's own takes a look at the disk
    on_scores: Callable[[Scores], None]

    def __call__(self, operation: Operation, inputs: Arrays) -> Arrays:
        match operation.name:
            case "encode":
                return self.runtime.encode(inputs)
            case "reconstruct":
                return self.runtime.reconstruct(inputs)
            case "decode":
                return self.runtime.decode(inputs["z"])
            case "score":
                scores = self._score(inputs, operation.options)
                try:
                    self.on_scores(scores)
                except Exception as error:  # who counts them is not to cost anyone the answer
                    log.error("scores not counted", model=scores.model, version=scores.version, exc_info=error)
                return _outputs(scores)

    def _score(self, inputs: Arrays, options: ScoreOptions) -> Scores:
        manifest, points = self.bundle.manifest, self.bundle.noise
        noise = draw_noise(points, count_samples(points, options, default=manifest.num_samples), seed=options.seed)
        return interpret(
            self.runtime.score(inputs, noise, by_feature=options.top_features > 0, iwae=options.bound is Bound.IWAE),
            self.bundle.calibration,
            options,
            model=manifest.name,
            version=self.version,
            features=manifest.signature.features if options.top_features else (),
        )


def _outputs(scores: Scores) -> Arrays:
    outputs: Arrays = {"records": records(scores)}
    if scores.attributions:
        # Rows of several attributions each, as one entry a row.
        outputs["attributions"] = np.fromiter(scores.attributions, object, len(scores))
    return outputs
