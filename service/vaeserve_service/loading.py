"""From a version's folder to a model that is checked and warm."""

import numpy as np

from vaeserve.bundle import Bundle
from vaeserve.errors import BundleError
from vaeserve_service.config import ServiceConfig
from vaeserve_service.health import LIVENESS
from vaeserve_service.metrics import Metrics
from vaeserve_service.model import Model
from vaeserve_service.runners import Runners
from vaeserve_service.runtime import Runtime, golden_inputs


class Loader:
    """Opens bundles and builds models of them, which all share the runners."""

    def __init__(self, config: ServiceConfig, *, runners: Runners, metrics: Metrics) -> None:
        self._config = config
        self._runners = runners
        self._metrics = metrics

    def load(self, name: str, version: int) -> Model:
        """Open a bundle, build its sessions, compute its golden rows on them, and run each graph once more, warm.

        Raises BundleError for a bundle that isn't whole, ConfigError where the device isn't there, and whatever else
        goes wrong.
        """
        folder = self._config.repository.path / name / str(version)
        if name == LIVENESS:
            raise BundleError(f"{folder}: {name!r} is the health service's name for the process; expected another name")
        bundle = Bundle.open(folder)
        runtime = Runtime.load(
            bundle, device=self._config.runtime.device, memory_bytes=self._config.runtime.gpu_memory_bytes
        )
        for rows in self._sizes():
            _run(runtime, bundle, rows)
        record = self._metrics.record(name, str(version), bundle.manifest.calibration)
        return Model(
            name,
            bundle,
            runtime,
            config=self._config,
            runners=self._runners,
            on_batch=record.batch,
            on_scores=record.drift.add,
        )

    def _sizes(self) -> list[int]:
        """Return the numbers of rows to warm: the least and the most of a batch, on a GPU each size of buffers."""
        most = self._config.batching.max_rows
        if self._config.runtime.device == "cpu":
            return [1, most]
        return [1 << power for power in range((most - 1).bit_length() + 1)]


def _run(runtime: Runtime, bundle: Bundle, rows: int) -> None:
    """Run each graph with so many rows, for its memory and, on a GPU, its kernels: the first request must not wait."""
    golden = {name: np.resize(array, (rows, *array.shape[1:])) for name, array in bundle.golden.items()}
    runtime.reconstruct(golden_inputs(golden))
    for by_feature, iwae in ((False, False), (False, True), (True, True)):
        noise = bundle.noise[: bundle.manifest.num_samples]
        runtime.score(golden_inputs(golden), noise, by_feature=by_feature, iwae=iwae)
