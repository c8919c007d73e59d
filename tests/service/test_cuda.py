"""The service on CUDA: on a machine with a GPU what it computes, and on one without how it refuses."""

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from numpy.typing import NDArray

from tests.conftest import KINDS
from vaeserve.client import Client
from vaeserve.config import load
from vaeserve.errors import BundleError, ConfigError
from vaeserve.local import serve_locally
from vaeserve_service.config import ServiceConfig
from vaeserve_service.runtime import TOLERANCE, Graph, Runtime, output_error

MIB = 2**20
Inputs = dict[str, NDArray[Any]]


def has_gpu() -> bool:
    """Tell whether NVIDIA's driver finds a device, without a word from what is tested."""
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    except OSError:
        return False


def has_onnxruntime_gpu() -> bool:
    """Tell which of ONNX Runtime's packages is installed."""
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="session")
def gpu() -> None:
    """A CUDA device and what runs on it, or the test is skipped."""
    if not has_gpu() or not has_onnxruntime_gpu():
        pytest.skip(f"needs a GPU ({has_gpu()}) and onnxruntime-gpu ({has_onnxruntime_gpu()})")


@pytest.fixture(scope="session")
def no_gpu() -> None:
    """What runs on a CUDA device and no such device, or the test is skipped."""
    if has_gpu() or not has_onnxruntime_gpu():
        pytest.skip(f"needs onnxruntime-gpu ({has_onnxruntime_gpu()}) without a GPU ({has_gpu()})")


def assert_close(computed: Inputs, expected: Inputs, inputs: Inputs) -> None:
    """Assert outputs within the tolerance of those of the CPU."""
    assert list(computed) == list(expected)
    for name, reference in expected.items():
        assert output_error(name, computed[name], reference, inputs) <= TOLERANCE, name


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_agrees_with_the_cpu(models: Any, inputs_of: Any, kind: str) -> None:
    """Each graph loads with all that it must on the device, and gives what the CPU does, for few rows and for many."""
    bundle = models.bundles[kind]
    cpu, cuda = Runtime.load(bundle), Runtime.load(bundle, device="cuda")
    for count in (1, 3, 300):
        inputs = inputs_of(kind, count)
        posterior = cpu.encode(inputs)
        assert_close(cuda.encode(inputs), posterior, inputs)
        assert_close(cuda.decode(posterior["mean"]), cpu.decode(posterior["mean"]), inputs)
        for samples in (bundle.manifest.num_samples, 7):
            noise = bundle.noise[:samples]
            assert_close(cuda.score(inputs, noise), cpu.score(inputs, noise), inputs)
    no_rows = {name: array[:0] for name, array in inputs.items()}
    assert_close(cuda.score(no_rows, bundle.noise[:2]), cpu.score(no_rows, bundle.noise[:2]), inputs)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("kind", ["table33", "mixed"])
def test_a_hundred_thousand_rows_agree_with_the_cpu(models: Any, inputs_of: Any, kind: str) -> None:
    """Many chunks give each row the score that the CPU gives it."""
    bundle, inputs = models.bundles[kind], inputs_of(kind, 100_000)
    noise = bundle.noise[: bundle.manifest.num_samples]
    computed = Runtime.load(bundle, device="cuda").score(inputs, noise, by_feature=False)
    assert_close(computed, Runtime.load(bundle).score(inputs, noise, by_feature=False), inputs)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("kind", ["table7", "conv"])
def test_threads_and_sessions_give_the_same_bits(models: Any, inputs_of: Any, kind: str) -> None:
    """Rows have the same bits from several threads at once, and from a session of another load."""
    bundle = models.bundles[kind]
    noise = bundle.noise[: bundle.manifest.num_samples]
    one, other = (Runtime.load(bundle, device="cuda") for _ in range(2))
    given = [inputs_of(kind, 200, seed=seed) for seed in range(16)]
    expected = [one.score(inputs, noise)["elbo"].tobytes() for inputs in given]
    score: Callable[[Inputs], bytes] = lambda inputs: other.score(inputs, noise)["elbo"].tobytes()  # noqa: E731
    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(score, given)) == expected


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_a_graph_takes_no_more_memory_than_it_may(models: Any, inputs_of: Any) -> None:
    """Within a limit a graph works; one that its weights or its buffers are past is said to be."""
    bundle = models.bundles["table33"]
    noise = bundle.noise[: bundle.manifest.num_samples]
    inputs = inputs_of("table33", 10_000)
    limited = Runtime.load(bundle, device="cuda", memory_bytes=256 * MIB)
    assert_close(limited.score(inputs, noise), Runtime.load(bundle).score(inputs, noise), inputs)
    with pytest.raises(BundleError, match=r"scorer\.onnx: .*memory"):
        Graph(bundle.graph("scorer"), name="scorer", device="cuda", memory_bytes=1024)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_a_service_on_cuda_answers_as_the_cpu_does(models: Any, inputs_of: Any, tmp_path: Path) -> None:
    """A request over gRPC is scored on the device, its strings too."""
    options = ("--device", "cuda", "--set", f"runtime.gpu_memory_bytes={256 * MIB}")
    log = tmp_path / "log"
    with serve_locally(models.repository, log=log, options=options) as service, Client(service.target) as client:
        for kind in ("table7", "grey", "codes", "mixed"):
            bundle, inputs = models.bundles[kind], inputs_of(kind, 500)
            expected = Runtime.load(bundle).score(inputs, bundle.noise[: bundle.manifest.num_samples])["elbo"]
            scored = client.score(kind, inputs)
            assert output_error("elbo", -scored.score, expected, inputs) <= TOLERANCE


def test_a_limit_of_a_gpu_that_is_not_used_is_refused() -> None:
    """A setting that would do nothing is an error that names it; beside the device it holds."""
    asked: dict[str, Any] = {"repository": {"path": "models"}, "runtime": {"gpu_memory_bytes": MIB}}
    with pytest.raises(ConfigError, match="gpu_memory_bytes with device cpu; expected it with device cuda"):
        load(ServiceConfig, overrides=asked)
    asked["runtime"]["device"] = "cuda"
    assert load(ServiceConfig, overrides=asked).runtime.gpu_memory_bytes == MIB


@pytest.mark.usefixtures("no_gpu")
def test_a_service_that_asks_for_cuda_in_vain_exits_2(two_bundles: Any) -> None:
    """With onnxruntime-gpu and no GPU, ONNX Runtime would take the CPU; the service says what lacks, and why."""
    repository = two_bundles[0].path.parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "vaeserve", "serve", "--repository", str(repository), "--host", "127.0.0.1",
         "--grpc-port", "0", "--http-port", "0", "--set", "runtime.device=cuda"],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    said = " ".join(done.stderr.split())
    assert re.search(r"device cuda: (lib\S+: cannot open|CUDA failure \d+: )", said)
    assert "expected an NVIDIA GPU, its driver, CUDA" in said
    assert said.endswith("install onnxruntime-gpu[cuda,cudnn] in place of onnxruntime")
    for other in ("serving", "onnxruntime:", "Traceback"):  # one error, with no words of ONNX Runtime's around it
        assert other not in done.stderr
