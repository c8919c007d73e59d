"""A report of every kind of run."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import KINDS, dataset_of
from tests.training.report.sound import check
from vaeserve.config import load
from vaeserve.signature import Column, Signature
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import Arrays, Dataset, split
from vaeserve_training.report.of_run import Modules, subject_of
from vaeserve_training.report.report import report
from vaeserve_training.report.shown import show
from vaeserve_training.report.subject import MOST_ROWS
from vaeserve_training.run import Run, write_run
from vaeserve_training.train import train

SECTIONS = [
    "data", "architecture", "training", "dimensions", "space", "reconstructions", "interpolations", "samples", "scores",
    "anomalous", "provenance", "absent",
]  # fmt: skip
HOSTILE = '<img src=x onerror="alert(1)"> & $a_1$ 漢\t'


def trained(path: Path, dataset: Dataset, steps: int = 20, **sections: dict[str, Any]) -> Run:
    """Return a run of a moment's training on a dataset, with some settings."""
    sections.setdefault("model", {"latent_dim": 2, "hidden": (7,)})
    config = load(TrainConfig, overrides={"optimizer": {"max_steps": steps, "evaluate_every": 10}, **sections})
    parts = split(dataset, config.data, seed=0)
    return write_run(path, train(parts, config, seed=0), dataset=dataset, split=parts, seed=0)


def labelled(dataset: Dataset, every: int = 5) -> Dataset:
    """Return a dataset whose every fifth row is said to be anomalous."""
    return Dataset(dataset.name, dataset.signature, dataset.arrays, np.arange(len(dataset)) % every == 0)


def numbers(rows: int, features: int) -> Dataset:
    """Return rows of correlated numbers."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(rows, 2)) @ generator.normal(size=(2, features)) + 0.1
    names = [f"c{index}" for index in range(features)]
    return Dataset("numbers", Signature.numbers(names), {"numeric": values.astype(np.float32)})


# The others take a while.
FAST = ("mixed", "conv", "codes", "few rows", "collapsed")


def cases(names: Iterable[str]) -> list[Any]:
    """Return the names as cases, of which most are slow."""
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("kind", cases(KINDS))
def test_every_kind_of_run_has_a_sound_page_with_every_section(models: Any, kind: str) -> None:
    """Tables, categories, missing values, images of 1 and 3 channels and ensembles all have a sound page."""
    page = report(subject_of(models.runs[kind]))
    assert [section.anchor for section in page.sections] == SECTIONS
    check(page.html())


def test_the_same_run_has_the_same_bytes(models: Any) -> None:
    """Page and pictures of a run are the same each time."""
    first, second = (report(subject_of(models.runs["mixed"])) for _ in range(2))
    assert first.html() == second.html()
    for one, other in islice(zip(first.pictures(), second.pictures(), strict=True), 3):
        assert one.files == other.files


def test_labels_add_detection_and_colours(tmp_path: Path) -> None:
    """Where rows of both kinds are held out, curves are drawn and each row in the table has its label."""
    run = trained(tmp_path / "run", labelled(dataset_of("mixed")))
    page = report(subject_of(run))
    assert "detection" in [section.anchor for section in page.sections]
    assert f"AUROC {run.record.test['auroc']:.3f}" in page.html()
    check(page.html())


def test_labelled_anomalies_make_no_dimension_active(tmp_path: Path) -> None:
    """Where anomalous rows lie far out, activity and KL are the normal rows', as the run's own figures have them."""
    dataset = labelled(numbers(300, 5))
    dataset.arrays["numeric"][::5] *= 30
    sections = EDGES["collapsed"][1] | {"model": {"latent_dim": 3, "hidden": (7,), "prior": "standard_normal"}}
    subject = subject_of(trained(tmp_path / "run", dataset, **sections))
    shown = show(subject)
    assert shown is not None
    assert shown.latents.active.sum() > subject.held_out["active_units"]
    assert shown.usual_latents.active.sum() == subject.held_out["active_units"]
    assert shown.usual_latents.kl.sum() == pytest.approx(subject.held_out["kl"], rel=0.01, abs=1e-4)
    html = report(subject).html()
    assert f">{subject.held_out['active_units']:.0f} of 3 active<" in html
    assert f"{shown.usual_latents.kl.sum():.4g} nats in all, a mean over" in html


class OneUsed:
    """A model of seven columns of which only the last latent dimension says anything."""

    latent_dim = 5

    def encode(self, inputs: Arrays) -> Arrays:
        """Return the first column as the mean of the last dimension."""
        mean = np.zeros((len(inputs["numeric"]), self.latent_dim), np.float32)
        mean[:, -1] = inputs["numeric"][:, 0]
        return {"mean": mean, "log_variance": np.zeros_like(mean)}

    def decode(self, z: NDArray[np.float32]) -> Arrays:
        """Return the last dimension as every column."""
        return {"numeric": np.repeat(z[:, -1:], 7, axis=1)}

    def score(self, inputs: Arrays) -> Arrays:
        """Score nothing, for there are no rows."""
        raise AssertionError(inputs)


def test_without_rows_the_axes_are_those_that_are_used(models: Any) -> None:
    """A page that has no rows walks along the dimensions that the decoder's samples have a trace of."""
    page = report(replace(subject_of(models.runs["table7"]), model=OneUsed(), rows=None))
    (first,) = [picture for picture in page.pictures() if picture.name == "along-0"]
    assert first.alt.startswith("z4: ")


EDGES: dict[str, tuple[Dataset, dict[str, Any]]] = {
    "one latent dimension": (labelled(numbers(200, 5)), {"model": {"latent_dim": 1, "hidden": (7,)}}),
    "collapsed": (
        numbers(200, 5),
        {
            "objective": {"beta": 1000.0, "kl_warmup": 0.0},
            "optimizer": {"max_steps": 400, "evaluate_every": 100, "learning_rate": 0.01},
        },
    ),
    "few rows": (numbers(12, 3), {}),
    "500 features": (labelled(numbers(150, 500)), {}),
    "one feature": (numbers(100, 1), {}),
    "autoencoder": (numbers(100, 5), {"model": {"posterior": "point", "prior": "standard_normal", "latent_dim": 2}}),
    "many latent dimensions": (numbers(100, 60), {"model": {"latent_dim": 60, "hidden": (7,)}}),
    "residual": (numbers(100, 5), {"model": {"network": "residual", "latent_dim": 2, "hidden": (7, 5)}}),
    "one evaluation": (numbers(100, 5), {"optimizer": {"max_steps": 1, "evaluate_every": 1}}),
}


@pytest.mark.parametrize("edge", cases(EDGES))
def test_edges_have_a_sound_page(tmp_path: Path, edge: str) -> None:
    """What has little to show has a page all the same."""
    dataset, sections = EDGES[edge]
    page = report(subject_of(trained(tmp_path / "run", dataset, **sections)))
    html = page.html()
    check(html)
    if edge == "collapsed":
        assert "Posterior collapse" in html
    if edge == "few rows":
        assert "calibration rows support" in html


@pytest.mark.parametrize("rows", [np.array([3]), np.arange(0, 150, 5)], ids=["one row", "anomalous rows alone"])
def test_few_rows_or_none_that_is_normal_have_a_sound_page(tmp_path: Path, rows: NDArray[np.intp]) -> None:
    """A model is shown on a single row, and on anomalous rows alone."""
    dataset = labelled(numbers(150, 5))
    check(report(subject_of(trained(tmp_path / "run", dataset), dataset[rows])).html())


def test_rates_without_support_are_said_and_not_drawn(models: Any) -> None:
    """With 120 calibration rows there is no line at 0.1 %, but a sentence on how many rows it takes."""
    subject = subject_of(models.runs["table7"])
    page = report(subject)
    assert subject.calibration.rows == 120
    assert "not supported: 120 calibration rows support 0.00826 or more, and 0.001 takes 999" in page.html()
    (histogram,) = [picture for picture in page.pictures() if picture.name == "scores"]
    assert "5 %:" in histogram.svg
    assert "0.1 %:" not in histogram.svg


def test_names_of_columns_and_categories_stay_words(tmp_path: Path) -> None:
    """Markup, dollars, other scripts and control characters in names are shown, and do nothing."""
    generator = np.random.default_rng(0)
    categories = (HOSTILE, "</svg><script>", "c")
    columns = [Column(HOSTILE + "n", "numeric"), Column(HOSTILE, "categorical", categories)]
    arrays: Arrays = {
        "numeric": generator.normal(size=(120, 1)).astype(np.float32),
        "categorical": np.array(categories)[generator.integers(0, 3, size=(120, 1))],
    }
    page = report(subject_of(trained(tmp_path / "run", Dataset(HOSTILE, Signature.table(columns), arrays))))
    html = page.html()
    check(html)
    assert "<img" not in html
    assert "<script" not in html
    assert "&lt;img src=x onerror=" in html


def test_rows_that_cannot_be_scored_are_counted_and_left_out(models: Any) -> None:
    """Infinite rows are said to be left out; where no row is left the page says what it lacks."""
    rows = dataset_of("table7", 50, seed=3)
    rows.arrays["numeric"][:4] = np.inf
    html = report(subject_of(models.runs["table7"], rows)).html()
    check(html)
    assert "4 rows that the model can&#39;t score" in html
    rows.arrays["numeric"][:] = np.inf
    html = report(subject_of(models.runs["table7"], rows)).html()
    check(html)
    assert "No row can be scored" in html


def test_a_column_that_is_missing_everywhere_is_borne(models: Any) -> None:
    """Rows that lack a column that may be missing are scored and drawn without it."""
    rows = dataset_of("mixed", 40, seed=3)
    rows.arrays["numeric"][:, 2] = np.nan
    html = report(subject_of(models.runs["mixed"], rows)).html()
    check(html)
    assert "all missing" in html


def test_many_rows_are_drawn_by_a_fixed_choice(models: Any) -> None:
    """Of more rows than a page needs it takes some, the same each time, and names them by their place in the source."""
    rows = dataset_of("table3", MOST_ROWS + 500, seed=3)
    first, second = (subject_of(models.runs["table3"], rows) for _ in range(2))
    assert first.rows is not None
    assert second.rows is not None
    assert len(first.rows) == MOST_ROWS
    np.testing.assert_array_equal(first.rows.inputs["numeric"], second.rows.inputs["numeric"])
    html = report(first).html()
    check(html)
    assert len(html) < 1_000_000


def test_a_run_computes_what_its_bundle_does(models: Any) -> None:
    """What a page draws of a run is what the exported graphs give, for encoder, decoder and scores."""
    from vaeserve_service.runtime import Runtime

    for kind in ("mixed", "conv"):
        run, bundle = models.runs[kind], models.bundles[kind]
        modules, runtime = Modules(run.ensemble(), run), Runtime.load(bundle)
        inputs = run.test().inputs
        noise = bundle.noise[: bundle.manifest.num_samples]
        for name in ("elbo", "kl", "feature_log_likelihood"):
            expected = runtime.score(inputs, noise)[name]
            np.testing.assert_allclose(modules.score(inputs)[name], expected, rtol=1e-3, atol=1e-3)
        mean = runtime.encode(inputs)["mean"]
        np.testing.assert_allclose(modules.encode(inputs)["mean"], mean, rtol=1e-3, atol=1e-4)
        for name, decoded in modules.decode(mean).items():
            if decoded.dtype.kind == "f":
                np.testing.assert_allclose(decoded, runtime.decode(mean)[name], rtol=1e-3, atol=1e-3)
            else:
                assert (decoded == runtime.decode(mean)[name]).mean() > 0.99
