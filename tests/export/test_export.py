"""From a run to a bundle."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from tests.conftest import KINDS
from vaeserve.bundle import Bundle
from vaeserve.config import load
from vaeserve.errors import BundleError, ConfigError, OperatorError, RefusedError
from vaeserve.scores import Bound, RowStatus
from vaeserve.signature import Column, Signature
from vaeserve_export.categories import ML_DOMAIN, ML_OPSET
from vaeserve_export.export import _parity, export
from vaeserve_export.graphs import OPSET, trace
from vaeserve_export.operators import ALLOWED, count_operators
from vaeserve_export.reference import Reference
from vaeserve_export.verify import verify
from vaeserve_service.runtime import GRAPHS, TOLERANCE, Runtime, output_error
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import Dataset, split
from vaeserve_training.prior import Exemplars
from vaeserve_training.run import write_run
from vaeserve_training.train import train

Outputs = dict[str, NDArray[Any]]


def errors_of(runtime: Runtime, reference: Reference, inputs: Outputs, noise: NDArray[np.float32]) -> dict[str, float]:
    """Return how far each output lies from the reference's."""
    mean = runtime.encode(inputs)["mean"]
    # What lies past the range of latents that are taken is decoded by nobody; nor is what has no latents.
    latents = np.clip(np.nan_to_num(mean), -1e3, 1e3)
    pairs = [
        (runtime.encode(inputs), reference.encode(inputs)),
        (runtime.decode(latents), reference.decode(latents)),
        (runtime.score(inputs, noise), reference.score(inputs, noise)),
    ]
    errors: dict[str, float] = {}
    for computed, expected in pairs:
        assert set(computed) == set(expected)
        errors |= {output: output_error(output, computed[output], expected[output], inputs) for output in expected}
    return errors


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_agrees_with_pytorch_in_double_precision(models: Any, inputs_of: Any, kind: str) -> None:
    """On 10,000 fresh rows that the export never saw, every output lies within the tolerance of a float64 reference."""
    bundle = models.bundles[kind]
    runtime, reference = Runtime.load(bundle), Reference(models.runs[kind].ensemble(), bundle.manifest.signature)
    noise = bundle.noise[: bundle.manifest.num_samples]
    errors = errors_of(runtime, reference, inputs_of(kind, 10_000, seed=9), noise)
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("kind", ["table3", "table7", "table33", "binary21", "mixed"])
def test_huge_and_tiny_numbers_agree_with_pytorch_too(models: Any, inputs_of: Any, kind: str) -> None:
    """So do rows of numbers of every size that single precision has, from 1e-38 to 3.4e38."""
    bundle = models.bundles[kind]
    runtime, reference = Runtime.load(bundle), Reference(models.runs[kind].ensemble(), bundle.manifest.signature)
    inputs = dict(inputs_of(kind, 2000, seed=9))
    sizes = 10.0 ** np.random.default_rng(0).uniform(-38, 38, inputs["numeric"].shape)
    inputs["numeric"] = np.clip(inputs["numeric"] * sizes, -3.4e38, 3.4e38).astype(np.float32)
    errors = errors_of(runtime, reference, inputs, bundle.noise[: bundle.manifest.num_samples])
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_have_symbolic_rows_and_allowed_operators(models: Any, kind: str) -> None:
    """Every graph takes any number of rows, the scorer any number of samples; opsets and operators are the pinned."""
    axes = {}
    for name in GRAPHS:
        model = onnx.load_from_string(models.bundles[kind].graph(name))
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        assert opsets == ({"": OPSET, ML_DOMAIN: ML_OPSET} if "columns" in KINDS[kind] else {"": OPSET})
        operators = count_operators(model)
        assert set(operators) <= ALLOWED
        assert operators == models.bundles[kind].manifest.operators[name]
        for value in (*model.graph.input, *model.graph.output):
            axes[name, value.name] = value.type.tensor_type.shape.dim[0].dim_param
    assert axes.pop(("scorer", "noise")) == "samples"
    assert set(axes.values()) == {"rows"}


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_hold_nothing_that_could_be_left_out(models: Any, kind: str) -> None:
    """Constants are folded, nothing is computed twice or for nobody, and a layer's product and sum are one operator."""
    for name in GRAPHS:
        graph = onnx.load_from_string(models.bundles[kind].graph(name)).graph
        constants = {tensor.name for tensor in graph.initializer}
        taken = [entry for node in graph.node for entry in node.input] + [value.name for value in graph.output]
        for node in graph.node:
            assert not node.input or not set(node.input) <= constants, f"{name}: {node.name} of constants alone"
            assert set(node.output) & set(taken), f"{name}: {node.name} for nobody"
        once = {(node.op_type, *node.input, *map(str, node.attribute)) for node in graph.node}
        assert len(once) == len(graph.node), name
    # A layer is one operator; sums over features, which are products too, are the scorer's alone.
    assert "MatMul" not in {*models.bundles[kind].manifest.operators["encoder"]} | {
        *models.bundles[kind].manifest.operators["decoder"]
    }


@pytest.mark.parametrize("kind", ["table7", "mixed", "image"])
def test_graphs_say_what_they_are(models: Any, kind: str) -> None:
    """Who made a graph, what it computes, and of each input and output what it holds and how it is shaped."""
    for name in GRAPHS:
        model = onnx.load_from_string(models.bundles[kind].graph(name))
        assert (model.producer_name, model.graph.name) == ("vaeserve", name)
        assert model.producer_version
        assert model.doc_string
        assert {entry.key: entry.value for entry in model.metadata_props}["vaeserve.graph"] == name
        for value in (*model.graph.input, *model.graph.output):
            assert value.doc_string.endswith("]"), f"{name}: {value.name}"


def test_categories_go_in_and_come_out_as_strings(models: Any, inputs_of: Any) -> None:
    """The graphs take a table's categories as they are, and the decoder names the likeliest, with all probabilities."""
    bundle, inputs = models.bundles["mixed"], inputs_of("mixed", 200)
    outputs = Runtime.load(bundle).reconstruct(inputs)
    columns = bundle.manifest.signature.categorical_columns
    assert outputs["categorical"].shape == (200, len(columns))
    probabilities, start = outputs["categorical/probabilities"], 0
    assert probabilities.shape == (200, sum(len(column.categories) + 1 for column in columns))
    for position, column in enumerate(columns):
        mine = probabilities[:, start : start + len(column.categories) + 1]  # the last is that of an unseen one
        start += mine.shape[1]
        scorable = outputs["status"] == RowStatus.OK
        np.testing.assert_allclose(mine[scorable].sum(1), 1, rtol=1e-5)
        likeliest = np.array(column.categories)[mine[:, :-1].argmax(1)]
        assert outputs["categorical"][scorable, position].tolist() == likeliest[scorable].tolist()


def test_graphs_tell_nothing_of_the_machine_they_were_made_on(models: Any) -> None:
    """No path of a source file, nor of a home, is left in a graph."""
    for name in ("encoder", "decoder", "scorer"):
        content = models.bundles["table7"].graph(name)
        assert b"site-packages" not in content
        assert b".py" not in content


def test_the_manifest_says_what_was_done(models: Any) -> None:
    """The manifest has the signature, the parity measured, the calibration and the provenance."""
    bundle, run = models.bundles["table7"], models.runs["table7"]
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    assert [column["name"] for column in manifest["signature"]["columns"]] == [f"c{index}" for index in range(7)]
    assert 0 < max(manifest["parity"]["errors"].values()) <= TOLERANCE
    assert manifest["parity"]["rows"] == run.record.rows["test"]
    assert manifest["calibration"]["rows"] == run.record.rows["calibration"] == 120
    assert manifest["training"]["data_sha256"] == run.record.data_sha256
    assert manifest["training"]["config"]["model"]["hidden"] == [33, 21]
    assert manifest["density"] == "standard-scaled values"


def test_the_calibration_is_the_scores_of_the_calibration_rows(models: Any) -> None:
    """calibration.npy holds, sorted, the very bits that scoring the calibration rows gives, for both bounds."""
    bundle = models.bundles["table7"]
    outputs = Runtime.load(bundle).score(
        models.runs["table7"].calibration().inputs, bundle.noise[: bundle.manifest.num_samples]
    )
    for bound in Bound:
        assert bundle.calibration.scores[bound].tobytes() == np.sort(-outputs[bound.value]).tobytes()
    baseline = -outputs["feature_log_likelihood"].mean(0, dtype=np.float64)
    np.testing.assert_allclose(bundle.calibration.baseline, baseline, rtol=1e-5)


def test_golden_rows_are_synthetic(models: Any) -> None:
    """The golden rows are drawn from the decoder: none of the data's rows is among them."""
    bundle, run = models.bundles["table33"], models.runs["table33"]
    data = {row.tobytes() for part in (run.calibration(), run.test()) for row in part.inputs["numeric"]}
    golden = bundle.golden["inputs/numeric"]
    assert golden.shape == (8, 33)
    assert not {row.tobytes() for row in golden} & data


def test_graphs_that_compute_something_else_are_refused(models: Any) -> None:
    """Where ONNX Runtime's outputs aren't the trained model's, the export says which and by how much."""
    run = models.runs["table7"]
    trained, other = run.ensemble(), run.ensemble()
    with torch.no_grad():
        other.member.encoder[0].bias += 0.01
    inputs = run.test().inputs
    graphs = trace(other, run.record.signature)
    runtime = Runtime({name: model.SerializeToString() for name, model in graphs.items()})
    with pytest.raises(RefusedError, match=r"encoder\.onnx: mean is off by .* on 60 held-out rows; expected 0\.0001"):
        _parity(runtime, Reference(trained, run.record.signature), inputs, np.zeros((2, 3), np.float32))


def test_no_share_is_subnormal(models: Any) -> None:
    """Of far exemplars neither, in whose shares a processor is many times slower; the nearest's share is as it is."""
    run = models.runs["table7"]
    ensemble = run.ensemble()
    latent_dim = ensemble.member.latent_dim
    ensemble.member.prior = Exemplars.of(30 * torch.randn(500, latent_dim), torch.zeros(500, latent_dim))
    scorer = trace(ensemble, run.record.signature)["scorer"]
    names = [node.output[0] for node in scorer.graph.node if node.op_type == "Softmax"]
    scorer.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(scorer.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs, noise = run.test().inputs, np.zeros((2, latent_dim), np.float32)
    bound, *softmaxes = session.run(["elbo", *names], {**inputs, "noise": noise})
    shares = next(values for values in softmaxes if values.shape[-1] == 500)
    assert np.median(shares) < 1.01 * math.exp(-70)
    assert np.min(shares) >= np.finfo(np.float32).smallest_normal
    np.testing.assert_allclose(bound, Reference(ensemble, run.record.signature).score(inputs, noise)["elbo"], rtol=1e-5)


def test_a_model_with_a_batch_dependent_operator_is_refused(models: Any) -> None:
    """A Softplus in the network stops the export by name."""
    ensemble = models.runs["table7"].ensemble()
    ensemble.member.encoder[1] = torch.nn.Softplus()
    with pytest.raises(RefusedError, match=r"encoder\.onnx: operator Softplus"):
        trace(ensemble, models.runs["table7"].record.signature)


def test_golden_rows_are_checked_when_a_bundle_is_loaded(models: Any) -> None:
    """Graphs of another model under right hashes are caught by the golden rows, and so are golden rows with a gap."""
    bundle, run = models.bundles["table7"], models.runs["table7"]
    other = run.ensemble()
    with torch.no_grad():
        other.member.decoder[0].bias += 0.01
    graphs = trace(other, run.record.signature)
    runtime = Runtime({name: model.SerializeToString() for name, model in graphs.items()})
    with pytest.raises(BundleError, match=r"decoder\.onnx: \w+ of the golden rows is off by .* expected 0\.0001"):
        runtime.check(bundle.golden, bundle.noise[: bundle.manifest.num_samples])
    for name, message in (("scorer/elbo", "off by inf"), ("latents", "expected inputs/NAME and latents")):
        golden = {key: array for key, array in bundle.golden.items() if key != name}
        with pytest.raises(BundleError, match=message):
            Runtime.load(bundle).check(golden, bundle.noise[: bundle.manifest.num_samples])


def test_a_column_of_one_value_is_masked_and_said_to_be(tmp_path: Path) -> None:
    """What such a column holds or lacks changes nothing; the manifest names it, and the bundle verifies."""
    rows = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
    rows[:, 1] = 5
    dataset = Dataset("constant", Signature.numbers([*"abc"]), {"numeric": rows})
    config = load(TrainConfig, overrides={"optimizer": {"max_steps": 40, "evaluate_every": 20}})
    parts = split(dataset, config.data, seed=0)
    trained = train(parts, config, seed=0)
    run = write_run(tmp_path / "run", trained, dataset=dataset, split=parts, seed=0)
    bundle = export(run, tmp_path / "models", name="constant")
    assert bundle.manifest.masked == ("b",)
    assert verify(bundle.path).passed
    others = np.repeat(rows[:1], 3, axis=0)
    others[1:, 1] = 7, np.nan
    outputs = Runtime.load(bundle).score({"numeric": others}, bundle.noise[:2])
    assert outputs["status"].tolist() == [0, 0, 0]
    assert len(set(outputs["elbo"].tolist())) == 1


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e9])
def test_numbers_in_raw_units_are_held_to_their_columns_size(size: float) -> None:
    """A column decoded as zeros is wrong however small its values are, and rounding right however large."""
    rows = (size * np.random.default_rng(0).normal(size=(50, 1))).astype(np.float32)
    assert output_error("numeric", np.zeros_like(rows), rows, {"numeric": rows}) > 0.9
    assert output_error("numeric", rows * np.float32(1 + 1e-6), rows, {"numeric": rows}) < 1e-5
    # What is nearly 0 where rows are large is as right as single precision can make it.
    assert output_error("numeric", rows * 0, rows * np.float32(1e-6), {"numeric": rows}) < 1e-5


def test_columns_of_any_scale_export(tmp_path: Path) -> None:
    """A column of billions is no reason to refuse: single precision resolves it as well as any other."""
    rows = np.random.default_rng(0).normal(size=(3000, 3)) * [1e9, 1.0, 1e-6]
    dataset = Dataset("scales", Signature.numbers([*"abc"]), {"numeric": rows.astype(np.float32)})
    config = load(TrainConfig, overrides={"optimizer": {"max_steps": 40, "evaluate_every": 20}})
    parts = split(dataset, config.data, seed=0)
    trained = train(parts, config, seed=0)
    run = write_run(tmp_path / "run", trained, dataset=dataset, split=parts, seed=0)
    assert export(run, tmp_path / "models", name="scales").manifest.parity.errors["decoder/numeric"] <= TOLERANCE


def test_whole_numbers_missing_values_and_bits_export(tmp_path: Path) -> None:
    """Values that many rows share part no single from double precision; rows that can't be scored calibrate nothing."""
    generator = np.random.default_rng(0)
    rows = np.column_stack([generator.poisson(3.3, 800), generator.random(800) < 0.3, 1e6 * generator.random(800)])
    rows[generator.random(800) < 0.2, 0] = np.nan
    rows[generator.random(800) < 0.05] = np.nan
    columns = [Column("visits", "numeric", nullable=True), Column("member", "binary", nullable=True)]
    signature = Signature.table([*columns, Column("income", "numeric", nullable=True)])
    dataset = Dataset("mixed", signature, {"numeric": rows.astype(np.float32)})
    settings: dict[str, Any] = {
        "model": {"scaling": ["quantile", "standard", "robust"]},
        "optimizer": {"max_steps": 60},
    }
    config = load(TrainConfig, overrides=settings)
    parts = split(dataset, config.data, seed=0)
    run = write_run(tmp_path / "run", train(parts, config, seed=0), dataset=dataset, split=parts, seed=0)
    bundle = export(run, tmp_path / "models", name="mixed")
    whole = int(np.isfinite(parts.calibration.inputs["numeric"]).any(axis=1).sum())
    assert bundle.manifest.calibration.rows == whole < len(parts.calibration)
    assert bundle.manifest.members == 3


def test_versions_count_up_and_are_never_overwritten(models: Any, tmp_path: Path) -> None:
    """Without --version the next one is taken, and a run's files are the same bytes each time; none is overwritten."""
    shutil.copytree(models.bundles["table3"].path, tmp_path / "m" / "1")
    second = export(models.runs["table3"], tmp_path, name="m")
    assert second.version == "2"
    for name in ("encoder.onnx", "decoder.onnx", "scorer.onnx", "noise.npy", "calibration.npy"):
        assert second.read(name) == models.bundles["table3"].read(name), name
    with pytest.raises(OperatorError, match="a version never changes"):
        export(models.runs["table3"], tmp_path, name="m", version=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../up"}, "--name '../up': expected up to 128 letters"),
        ({"name": ""}, "--name ''"),
        ({"name": "m", "version": 0}, "--version 0: expected a whole number from 1"),
        ({"name": "m", "false_positive_rate": 0.001}, "120 calibration rows support 0.00826 or more; 0.001 takes 999"),
        ({"name": "m", "false_positive_rate": 2.0}, "--false-positive-rate 2: expected 1e-09 or more and less than 1"),
    ],
)
def test_options_that_cannot_be_are_refused(models: Any, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """A wrong name, version or rate is refused, and nothing is written."""
    with pytest.raises(ConfigError, match=message):
        export(models.runs["table3"], tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_the_default_rate_is_what_the_rows_support(models: Any) -> None:
    """120 calibration rows support 1 %, which is the default."""
    assert models.bundles["table7"].manifest.false_positive_rate == 0.01


def test_a_copied_bundle_is_the_same_bundle(models: Any, tmp_path: Path) -> None:
    """A bundle can be copied elsewhere; outside a repository it has no version."""
    copied = Bundle.open(shutil.copytree(models.bundles["table3"].path, tmp_path / "anywhere"))
    assert copied.manifest == models.bundles["table3"].manifest
    assert copied.version == ""
