"""A bundle's next version."""

import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from vaeserve.bundle import Bundle
from vaeserve.config import load
from vaeserve.errors import BundleError, ConfigError, DataError, OperatorError, RefusedError
from vaeserve.scores import Bound
from vaeserve.source import Source, open_source
from vaeserve_export.command import calibrate
from vaeserve_export.export import export
from vaeserve_export.recalibrate import recalibrate
from vaeserve_service.runtime import Runtime
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import load_dataset, read_dataset, split
from vaeserve_training.run import write_run
from vaeserve_training.train import train

UNCHANGED = ("encoder.onnx", "decoder.onnx", "scorer.onnx", "noise.npy", "golden.npz")
NEW = {"created", "false_positive_rate", "files", "calibration", "feature_baseline", "derived_from"}


def opened(path: Path) -> Source:
    """Open a file of rows."""
    return open_source(str(path))


def write_csv(path: Path, rows: int = 300, *, seed: int = 0) -> Path:
    """Write numbers and categories, some missing, with labels: every tenth row is far off, and `bad`."""
    generator = np.random.default_rng(seed)
    size = generator.normal(size=rows)
    zips = np.where(size > 0, "01", "02")
    lines = ["size,zip,weight,kind"]
    for row in range(rows):
        bad = row % 10 == 9
        weight = "" if row % 7 == 3 else f"{size[row] + 0.1 * generator.normal() + 9 * bad:.4f}"
        lines.append(f"{size[row]:.4f},{'' if row % 11 == 5 else zips[row]},{weight},{'bad' if bad else 'fine'}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A table with categories, missing values and labels, and the bundle of a model that was trained on it."""
    folder = tmp_path_factory.mktemp("labelled")
    table = write_csv(folder / "table.csv")
    config = load(TrainConfig, overrides={
        "model": {"hidden": [5], "latent_dim": 2, "exemplars": 20, "scaling": "standard"},
        "optimizer": {"max_steps": 20}, "data": {"kinds": {"zip": "categorical"}},
    })  # fmt: skip
    dataset = load_dataset(opened(table), label="kind", normal="fine", kinds=config.data.kinds)
    parts = split(dataset, config.data, seed=0)
    run = write_run(folder / "run", train(parts, config, seed=0), dataset=dataset, split=parts, seed=0)
    return table, export(run, folder / "models", name="table")


@pytest.mark.parametrize("kind", ["table7", "mixed", "image"])
def test_the_next_version_differs_in_its_calibration_alone(bundle_of: Any, rows_file: Any, kind: str) -> None:
    """Graphs, noise and golden rows keep their bytes, the manifest all but the calibration; the version loads."""
    before = bundle_of(kind)
    after = recalibrate(before, opened(rows_file(kind, 250)))
    assert after.path == before.path.parent / "2"
    assert Bundle.open(after.path).manifest == after.manifest
    Runtime.load(after)
    for name in UNCHANGED:
        assert after.read(name) == before.read(name)
    old, new = (bundle.manifest.model_dump(mode="json") for bundle in (before, after))
    assert {name for name in new if new[name] != old[name]} == NEW - {"false_positive_rate"}
    assert after.manifest.derived_from == before.manifest_sha256
    assert after.manifest.created > before.manifest.created


@pytest.mark.parametrize("kind", ["table7", "mixed"])
def test_the_calibration_is_of_the_rows_that_were_given(
    bundle_of: Any, rows_file: Any, inputs_of: Any, kind: str
) -> None:
    """Both bounds' sorted scores, their quantiles, the terms' moments and the features' means are the new rows'."""
    before, file = bundle_of(kind), rows_file(kind, 250)
    after = recalibrate(before, opened(file))
    outputs = Runtime.load(before).score(inputs_of(kind, 250), before.noise[: before.manifest.num_samples])
    for bound in Bound:
        assert after.calibration.scores[bound].tolist() == np.sort(-outputs[bound.value]).tolist()
    summary = after.manifest.calibration
    assert (summary.rows, summary.unscorable, summary.data) == (250, 0, str(file))
    assert summary.quantiles[Bound.ELBO]["0.5"] == pytest.approx(np.median(-outputs["elbo"]))
    for moments, values in ((summary.kl, outputs["kl"]), (summary.log_likelihood, outputs["log_likelihood"])):
        assert moments.mean == pytest.approx(values.mean(dtype=np.float64))
        assert moments.standard_deviation == pytest.approx(values.std(dtype=np.float64))
    np.testing.assert_allclose(
        after.manifest.feature_baseline, -outputs["feature_log_likelihood"].mean(0, dtype=np.float64), rtol=1e-5
    )
    assert summary.data_sha256 == read_dataset(opened(file), before.manifest.signature).sha256()


def test_labelled_and_unscorable_rows_are_set_aside_and_said(bundle_of: Any, rows_file: Any) -> None:
    """Rows labelled anomalous don't calibrate, those that can't be scored don't either, and both are counted."""
    before = bundle_of("table7")
    anomalous = np.arange(300) % 3 == 0
    file = rows_file("table7", 300, anomalous=anomalous)
    stderr = StringIO()
    unlabelled = recalibrate(before, opened(file))
    options: dict[str, Any] = {"version": None, "false_positive_rate": None}
    console = Console(file=stderr, width=200)
    calibrate(before.path, str(file), label="label", normal=None, console=console, as_json=False, **options)
    after = Bundle.open(before.path.parent / "3")
    assert (unlabelled.manifest.calibration.rows, after.manifest.calibration.rows) == (300, 200)
    assert "300 rows: 200 calibrate, 100 labelled anomalous and set aside, 0 unscorable" in stderr.getvalue()
    inverted = recalibrate(before, opened(file), label="label", normal="1")
    assert inverted.manifest.calibration.rows == 100


def test_a_row_that_cannot_be_scored_is_counted(bundle_of: Any, inputs_of: Any, tmp_path: Path) -> None:
    """A row with what the model can't take is left out of the calibration, and counted in the manifest."""
    lines = [",".join(f"c{index}" for index in range(7))]
    lines += [",".join(map(str, row)) for row in inputs_of("table7", 60)["numeric"].tolist()]
    lines[5] = f",{lines[5].partition(',')[2]}"
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    after = recalibrate(bundle_of("table7"), opened(tmp_path / "rows.csv"), false_positive_rate=0.05)
    summary = after.manifest.calibration
    assert (summary.rows, summary.unscorable) == (59, 1)


@pytest.mark.parametrize(
    ("rows", "asked", "rate"), [(150, None, 0.05), (19, None, 0.05), (150, 0.02, 0.02), (18, 0.1, 0.1)]
)
def test_the_rate_is_the_asked_one_or_the_old_one(
    bundle_of: Any, rows_file: Any, rows: int, asked: float | None, rate: float
) -> None:
    """The old rate stays though the rows would support a lower one, unless another is asked for."""
    first = recalibrate(bundle_of("table7"), opened(rows_file("table7", 120)), false_positive_rate=0.05)
    source = opened(rows_file("table7", rows))
    assert recalibrate(first, source, false_positive_rate=asked).manifest.false_positive_rate == rate


def test_rows_too_few_for_the_old_rate_are_refused(bundle_of: Any, rows_file: Any) -> None:
    """No rate is changed unasked: the number of rows that the old one takes is said, and nothing is written."""
    bundle = bundle_of("table7")
    with pytest.raises(ConfigError, match=r"-rate 0\.01: 98 calibration rows support 0\.0101 or more; 0\.01 takes 99"):
        recalibrate(bundle, opened(rows_file("table7", 98)))
    assert [path.name for path in bundle.path.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("kind", ["table7", "mixed", "image"])
def test_the_rows_that_trained_are_refused(bundle_of: Any, rows_file: Any, kind: str) -> None:
    """A file with the run's own rows has the run's fingerprint, and is refused."""
    bundle, file = bundle_of(kind), rows_file(kind, 600, seed=0)
    with pytest.raises(
        DataError, match="the rows that the model was trained on .SHA-256 .* expected rows that neither"
    ):
        recalibrate(bundle, opened(file))
    assert [path.name for path in bundle.path.parent.iterdir()] == ["1"]


def test_the_rows_that_trained_are_refused_with_their_labels(labelled: tuple[Path, Bundle], tmp_path: Path) -> None:
    """With categories, missing values and labels, given or not, it is the training's too; other rows are taken."""
    table, bundle = labelled
    with pytest.raises(DataError, match=f"{table}: the rows that the model was trained on"):
        recalibrate(bundle, opened(table), label="kind", normal="fine")
    with pytest.raises(DataError, match=f"{table}: the rows that the model was trained on"):
        recalibrate(bundle, opened(table))
    after = recalibrate(bundle, opened(write_csv(tmp_path / "other.csv", seed=1)), label="kind", normal="fine")
    assert after.manifest.calibration.rows + after.manifest.calibration.unscorable == 270
    shutil.rmtree(after.path)


def test_rows_that_trained_without_labels_are_refused_with_them(bundle_of: Any, rows_file: Any) -> None:
    """Labels that the training didn't know don't make the same rows others."""
    file = rows_file("table7", 600, seed=0, anomalous=np.arange(600) >= 590)
    with pytest.raises(DataError, match="the rows that the model was trained on"):
        recalibrate(bundle_of("table7"), opened(file), label="label")


def test_an_existing_version_is_never_written_over(bundle_of: Any, rows_file: Any) -> None:
    """A version that exists is refused, and stays; the default is past the highest, also from an older one."""
    bundle, source = bundle_of("table3"), opened(rows_file("table3", 100))
    with pytest.raises(OperatorError, match="models/table3/1: exists already, and a version never changes"):
        recalibrate(bundle, source, version=1)
    assert Bundle.open(bundle.path).manifest == bundle.manifest
    assert recalibrate(bundle, source, version=7).version == "7"
    assert recalibrate(bundle, source).version == "8"
    with pytest.raises(ConfigError, match="--version 0: expected a whole number from 1"):
        recalibrate(bundle, source, version=0)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (0.001, "--false-positive-rate 0.001: 100 calibration rows support 0.0099 or more; 0.001 takes 999"),
        (1.0, "--false-positive-rate 1: expected 1e-09 or more and less than 1"),
    ],
)
def test_a_rate_that_the_rows_cannot_support_is_refused(
    bundle_of: Any, rows_file: Any, rate: float, message: str
) -> None:
    """Such a rate is refused with the rows that it takes, and nothing is written."""
    bundle = bundle_of("table3")
    with pytest.raises(ConfigError, match=message):
        recalibrate(bundle, opened(rows_file("table3", 100)), false_positive_rate=rate)
    assert [path.name for path in bundle.path.parent.iterdir()] == ["1"]


def test_rows_set_aside_support_no_rate(bundle_of: Any, rows_file: Any) -> None:
    """What counts are the rows that calibrate, which are known once all are read."""
    bundle, file = bundle_of("table3"), rows_file("table3", 100, anomalous=np.arange(100) >= 60)
    with pytest.raises(ConfigError, match="60 calibration rows support 0.0164 or more; 0.01 takes 99"):
        recalibrate(bundle, opened(file), label="label", false_positive_rate=0.01)
    assert [path.name for path in bundle.path.parent.iterdir()] == ["1"]


def test_a_bundle_outside_a_repository_is_refused(models: Any, rows_file: Any, tmp_path: Path) -> None:
    """A folder that is no version of a name has no next version."""
    source = opened(rows_file("table3", 100))
    for place in ("loose", ".hidden/1", "name/01"):
        path = shutil.copytree(models.bundles["table3"].path, tmp_path / place)
        with pytest.raises(ConfigError, match=f"{place}: outside a repository, .* expected NAME/VERSION"):
            recalibrate(Bundle.open(path), source)


def test_a_bundle_in_the_working_folder_has_a_next_version(
    bundle_of: Any, rows_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version's folder may be given as `.`, or by its number alone."""
    bundle, source = bundle_of("table3"), opened(rows_file("table3", 100))
    monkeypatch.chdir(bundle.path)
    assert recalibrate(Bundle.open("."), source).path == bundle.path.parent / "2"
    monkeypatch.chdir(bundle.path.parent)
    assert recalibrate(Bundle.open("1"), source).path.resolve() == bundle.path.parent / "3"


def test_rows_that_do_not_fit_are_refused(bundle_of: Any, rows_file: Any, tmp_path: Path) -> None:
    """Other columns, none that is normal, none that can be scored: each is one message, and nothing is written."""
    bundle = bundle_of("table7")
    with pytest.raises(DataError, match="column 'c3' is missing"):
        recalibrate(bundle, opened(rows_file("table3", 120)))
    with pytest.raises(DataError, match="column 'label' calls all 120 rows anomalous"):
        recalibrate(bundle, opened(rows_file("table7", 120, anomalous=np.ones(120, bool))), label="label")
    (tmp_path / "gone.csv").write_text("c0,c1,c2,c3,c4,c5,c6\n" + ",1,1,1,1,1,1\n" * 300)
    with pytest.raises(RefusedError, match="none of its 300 rows can be scored; expected one or more"):
        recalibrate(bundle, opened(tmp_path / "gone.csv"))
    assert [path.name for path in bundle.path.parent.iterdir()] == ["1"]


def test_a_bundle_that_is_not_whole_is_refused(bundle_of: Any, rows_file: Any) -> None:
    """A graph whose hash differs doesn't reach another version."""
    bundle = bundle_of("table3")
    graph = bytearray((bundle.path / "decoder.onnx").read_bytes())
    graph[100] ^= 1
    (bundle.path / "decoder.onnx").write_bytes(graph)
    with pytest.raises(BundleError, match="decoder.onnx: SHA-256 .*; the manifest says"):
        recalibrate(bundle, opened(rows_file("table3", 100)))
    assert [path.name for path in bundle.path.parent.iterdir()] == ["1"]


def test_the_command_prints_the_path_or_json(
    bundle_of: Any, rows_file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stdout has the new version's path, or what was done as JSON."""
    bundle, file = bundle_of("table3"), rows_file("table3", 110, anomalous=np.arange(110) >= 100)
    options: dict[str, Any] = {"label": "label", "normal": None, "version": None, "false_positive_rate": None}
    console = Console(file=StringIO())
    calibrate(bundle.path, str(file), console=console, as_json=False, **options)
    assert capsys.readouterr().out == f"{bundle.path.parent / '2'}\n"
    calibrate(bundle.path, str(file), console=console, as_json=True, **options)
    assert json.loads(capsys.readouterr().out) == {
        "bundle": str(bundle.path.parent / "3"),
        "data": str(file),
        "rows": 110,
        "calibrating": 100,
        "labelled_anomalous": 10,
        "unscorable": 0,
        "false_positive_rate": 0.01,
        "derived_from": bundle.manifest_sha256,
    }
