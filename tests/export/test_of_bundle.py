"""A report of a bundle: what its graphs compute, and what takes rows only where some are given."""

from typing import Any

import numpy as np
import pytest

from tests.training.report.sound import check
from vaeserve.errors import BundleError
from vaeserve.scores import Bound
from vaeserve_export.of_bundle import subject_of
from vaeserve_training.data import Dataset
from vaeserve_training.report.of_run import subject_of as subject_of_run
from vaeserve_training.report.report import report

WITHOUT_ROWS = ["data", "architecture", "interpolations", "samples", "scores", "provenance", "absent"]


@pytest.mark.parametrize("kind", ["mixed", "conv", pytest.param("codes", marks=pytest.mark.slow)])
def test_a_bundle_without_rows_shows_what_it_holds_and_says_how_to_see_more(models: Any, kind: str) -> None:
    """Samples, interpolations, calibration scores and parity need no rows; of the rest it is said what it takes."""
    page = report(subject_of(models.bundles[kind]))
    html = page.html()
    check(html)
    assert [section.anchor for section in page.sections] == WITHOUT_ROWS
    assert "--data ROWS" in html
    assert "scorer/elbo" in html
    assert models.bundles[kind].manifest_sha256 in html


def test_rows_bring_what_a_run_shows(models: Any) -> None:
    """Given a run's own test rows with labels, a bundle's page has the sections of the run's but for its training."""
    rows = models.runs["mixed"].test()
    rows = Dataset(rows.name, rows.signature, rows.arrays, np.arange(len(rows)) % 4 == 0)
    of_bundle = report(subject_of(models.bundles["mixed"], rows))
    of_run = report(subject_of_run(models.runs["mixed"], rows))
    expected = [section.anchor for section in of_run.sections if section.anchor != "training"]
    assert [section.anchor for section in of_bundle.sections] == expected
    check(of_bundle.html())


def test_a_run_is_calibrated_as_its_bundle_is(models: Any) -> None:
    """The scores, the baseline and the number of rows are those that the export wrote."""
    mine = subject_of_run(models.runs["mixed"]).calibration
    exported = models.bundles["mixed"].calibration
    assert mine.rows == exported.rows
    for bound in Bound:
        np.testing.assert_allclose(mine.scores[bound], exported.scores[bound], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(mine.baseline, exported.baseline, rtol=1e-3, atol=1e-3)


def test_layers_are_those_of_the_graph(models: Any) -> None:
    """The networks' layers, read from the graph, have the shapes and weights that the modules have."""
    for kind in ("table7", "conv"):
        of_graph = subject_of(models.bundles[kind]).architecture
        of_modules = subject_of_run(models.runs[kind]).architecture
        for graph, modules in zip(of_graph, of_modules, strict=True):
            assert graph.name == modules.name
            assert sum(layer.parameters for layer in graph.layers) == modules.parameters, (kind, graph)


def test_a_broken_bundle_has_no_report(models: Any, tmp_path: Any) -> None:
    """A graph whose hash differs is refused by name."""
    import shutil

    from vaeserve.bundle import Bundle

    copy = shutil.copytree(models.bundles["table3"].path, tmp_path / "1")
    content = bytearray((copy / "scorer.onnx").read_bytes())
    content[-1] ^= 1
    (copy / "scorer.onnx").write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"scorer\.onnx: SHA-256"):
        subject_of(Bundle.open(copy))
