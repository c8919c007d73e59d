"""Two bundles on the same rows."""

import json
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from rich.console import Console

from vaeserve.bundle import Bundle
from vaeserve.errors import BundleError, DataError
from vaeserve.scores import ScoreOptions, Scores, interpret
from vaeserve.source import open_source
from vaeserve_export.command import compare as command
from vaeserve_export.compare import BATCH_ROWS, QUANTILES, compare
from vaeserve_export.comparison import show
from vaeserve_export.recalibrate import recalibrate
from vaeserve_service.runtime import Runtime

ROWS = 3000


def scores_of(bundle: Bundle, inputs: dict[str, NDArray[Any]]) -> Scores:
    """Score rows as the bundle is by default, all at once."""
    outputs = Runtime.load(bundle).score(inputs, bundle.noise[: bundle.manifest.num_samples])
    return interpret(outputs, bundle.calibration, ScoreOptions(), model="", version="", features=())


def ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return each value's rank, from 1; equal ones share their mean rank."""
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])


def auroc(scores: NDArray[Any], anomalous: NDArray[np.bool_]) -> float:
    """Return the share of pairs of a normal and an anomalous row that the scores order."""
    pairs = scores[anomalous][:, None] - scores[~anomalous][None, :]
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)


def average_precision(scores: NDArray[Any], anomalous: NDArray[np.bool_]) -> float:
    """Return the mean, over the anomalous rows, of the precision among the rows that score at least as high."""
    return float(np.mean([anomalous[scores >= score].mean() for score in scores[anomalous]]))


@pytest.fixture
def rows(inputs_of: Any) -> NDArray[np.float32]:
    """Rows of 7 columns: the last tenth anomalous, one without what table7 needs, one without what both need."""
    numbers: NDArray[np.float32] = inputs_of("table7", ROWS)["numeric"].copy()
    numbers[-ROWS // 10 :] = numbers[-ROWS // 10 :, ::-1]
    numbers[11, 5] = np.nan
    numbers[1500, 1] = np.nan
    return numbers


@pytest.fixture
def anomalous() -> NDArray[np.bool_]:
    """Which of the rows are labelled so."""
    return np.arange(ROWS) >= ROWS - ROWS // 10


@pytest.fixture
def file(rows: NDArray[np.float32], anomalous: NDArray[np.bool_], tmp_path: Path) -> Path:
    """Those rows, columns in another order, with labels."""
    columns = {f"c{index}": rows[:, index] for index in reversed(range(7))}
    pq.write_table(pa.table({"label": anomalous.astype(int), **columns}), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_figures_are_those_of_a_computation_by_hand(
    models: Any, file: Path, rows: NDArray[np.float32], anomalous: NDArray[np.bool_]
) -> None:
    """Every figure of two models of other columns and other calibrations is what NumPy gives on all rows at once."""
    a, b = models.bundles["table7"], models.bundles["table3"]
    found = compare(a, b, open_source(str(file)), label="label")
    of_a, of_b = scores_of(a, {"numeric": rows}), scores_of(b, {"numeric": rows[:, :3].copy()})
    both = ~np.isnan(of_a.score) & ~np.isnan(of_b.score)
    assert (found.rows, found.scored_by_both, found.labelled_anomalous) == (ROWS, ROWS - 2, ROWS // 10)
    assert (found.a.unscorable, found.b.unscorable) == (2, 1)
    assert compare(b, a, open_source(str(file))).scored_by_both == ROWS - 2
    expected = np.corrcoef(ranks(of_a.score[both]), ranks(of_b.score[both]))[0, 1]
    assert 0.2 < expected < 0.99
    assert found.spearman == pytest.approx(expected)
    for shifts, before, after in (
        (found.score_shift, of_a.score, of_b.score),
        (found.p_value_shift, of_a.p_value, of_b.p_value),
    ):
        by_hand = np.quantile(after[both].astype(float) - before[both].astype(float), QUANTILES)
        assert list(shifts.values()) == pytest.approx(by_hand.tolist())
    for side, scores, bundle in ((found.a, of_a, a), (found.b, of_b, b)):
        assert (side.bundle, side.name, side.version) == (str(bundle.path), bundle.manifest.name, "1")
        assert side.false_positive_rate == bundle.manifest.false_positive_rate
        assert (side.anomalous, side.anomalous_share) == (scores.anomalous.sum(), scores.anomalous.mean())
        assert side.auroc == pytest.approx(auroc(scores.score[both], anomalous[both]))
        assert side.average_precision == pytest.approx(average_precision(scores.score[both], anomalous[both]))
        assert side.rows_per_second == pytest.approx(ROWS / side.cpu_seconds)
    for changed, by, not_by in (
        (found.newly_anomalous, of_b, of_a),
        (found.no_longer_anomalous, of_a, of_b),
    ):
        expected_rows = np.flatnonzero(by.anomalous & ~not_by.anomalous)
        assert (changed.count, changed.share) == (len(expected_rows), len(expected_rows) / ROWS)
        assert changed.examples == tuple(expected_rows[:5])
    assert found.newly_anomalous.count > 0
    assert found.no_longer_anomalous.count > 5
    assert found.time_ratio == found.b.cpu_seconds / found.a.cpu_seconds > 0


def test_a_bundle_compared_with_itself_changes_nothing(models: Any, file: Path) -> None:
    """The correlation is 1, no score or p-value moves, and no row changes sides."""
    bundle = models.bundles["table7"]
    found = compare(bundle, bundle, open_source(str(file)))
    assert found.spearman == pytest.approx(1, abs=1e-12)
    assert set(found.score_shift.values()) == set(found.p_value_shift.values()) == {0.0}
    assert (found.newly_anomalous.count, found.no_longer_anomalous.count) == (0, 0)
    assert found.a.anomalous == found.b.anomalous > 0
    assert found.a.auroc is found.b.average_precision is found.labelled_anomalous is None


def test_a_new_calibration_moves_p_values_and_no_scores(bundle_of: Any, rows_file: Any, file: Path) -> None:
    """Of a bundle and its next version the scores are the same, and the p-values are not."""
    a = bundle_of("table7")
    b = recalibrate(a, open_source(str(rows_file("table7", 500, seed=3))), false_positive_rate=0.002)
    found = compare(a, b, open_source(str(file)))
    assert set(found.score_shift.values()) == {0.0}
    assert found.p_value_shift["0"] < found.p_value_shift["1"]
    assert found.b.false_positive_rate == 0.002
    assert found.no_longer_anomalous.count > found.newly_anomalous.count == 0


def test_a_column_may_be_a_number_to_one_and_a_category_to_the_other(
    models: Any, inputs_of: Any, tmp_path: Path
) -> None:
    """Each model reads the rows as its own signature says, in step."""
    mixed, numbers = models.bundles["mixed"], models.bundles["table3"]
    inputs = inputs_of("mixed", 1500)
    columns = {
        column.name: inputs[part][:, index]
        for part, some in (
            ("numeric", mixed.manifest.signature.numeric_columns),
            ("categorical", mixed.manifest.signature.categorical_columns),
        )
        for index, column in enumerate(some)
    }
    names = list(columns)
    lines = [",".join("" if str(columns[name][row]) == "nan" else str(columns[name][row]) for name in names)
             for row in range(1500)]  # fmt: skip
    (tmp_path / "rows.csv").write_text("\n".join([",".join(names), *lines]) + "\n")
    found = compare(mixed, numbers, open_source(str(tmp_path / "rows.csv")))
    alone = scores_of(mixed, inputs)
    assert (found.rows, found.a.anomalous) == (1500, alone.anomalous.sum())
    assert found.b.unscorable == np.isnan(inputs["numeric"][:, :3]).any(axis=1).sum()


def test_rows_that_nobody_scores_have_no_figures(models: Any, tmp_path: Path) -> None:
    """Without a row that both score there is no correlation and no shift; the report can still be shown."""
    (tmp_path / "rows.csv").write_text("c0,c1,c2,label\n,1,1,0\n1,,1,1\n")
    bundle = models.bundles["table3"]
    found = compare(bundle, bundle, open_source(str(tmp_path / "rows.csv")), label="label")
    assert (found.scored_by_both, found.a.unscorable) == (0, 2)
    assert found.spearman is found.a.auroc is None
    assert found.score_shift == found.p_value_shift == {}
    text = StringIO()
    show(found, Console(file=text, width=80))
    assert "2 rows, 1 labelled anomalous, 0 scored by both" in text.getvalue()


def test_rows_that_do_not_fit_name_the_bundle_and_the_column(models: Any, file: Path, rows_file: Any) -> None:
    """What one of the models can't take is refused with its path; a wrong label, before anything is scored."""
    table7, table3, image = (models.bundles[kind] for kind in ("table7", "table3", "image"))
    narrow = open_source(str(rows_file("table3", 20)))
    with pytest.raises(DataError, match=f"{table7.path}: .*column 'c3' is missing .and 3 more."):
        compare(table3, table7, narrow)
    with pytest.raises(DataError, match=f"{image.path}: .*; the model takes images"):
        compare(table3, image, narrow)
    with pytest.raises(DataError, match=f"^{file}: no column 'lable'; expected one of .*; did you mean 'label'?"):
        compare(table7, table3, open_source(str(file)), label="lable")
    with pytest.raises(DataError, match="--normal '1' without labels; expected --label COLUMN too"):
        compare(table7, table3, open_source(str(file)), normal="1")


def test_a_bundle_that_is_not_whole_is_refused(models: Any, bundle_of: Any, file: Path) -> None:
    """A graph whose hash differs isn't compared."""
    bundle = bundle_of("table7")
    graph = bytearray((bundle.path / "scorer.onnx").read_bytes())
    graph[100] ^= 1
    (bundle.path / "scorer.onnx").write_bytes(graph)
    with pytest.raises(BundleError, match="scorer.onnx: SHA-256"):
        compare(models.bundles["table7"], bundle, open_source(str(file)))


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_prints_a_table_of_80_columns_or_json(
    models: Any, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    """A person gets a table that no line of a terminal breaks; a program all the fields."""
    monkeypatch.setenv("COLUMNS", "80")
    a, b = (models.bundles[kind].path for kind in ("table7", "table3"))
    command(a, b, str(file), label="label", normal=None, console=Console(file=StringIO()), as_json=as_json)
    out = capsys.readouterr().out
    if as_json:
        figures = json.loads(out)
        assert (figures["rows"], figures["a"]["unscorable"]) == (ROWS, 2)
        assert len(figures["no_longer_anomalous"]["examples"]) == 5
        assert list(figures["score_shift"]) == [f"{level:g}" for level in QUANTILES]
        return
    lines = out.splitlines()
    assert max(len(line) for line in lines[2:] if file.name not in line) <= 80  # whose path is as long as it is
    for said in ("AUROC ", "rank correlation ", "newly anomalous ", "no longer anomalous ", "B takes "):
        assert any(said in line for line in lines)


@pytest.mark.parametrize("lost", [1, 2])
def test_rows_that_change_while_they_are_read_are_refused(models: Any, rows_file: Any, lost: int) -> None:
    """Where the models read the rows each in its own way, and one finds fewer, nothing is compared."""
    whole = open_source(str(rows_file("table7", 3 * BATCH_ROWS)))
    reads: list[int] = []

    def open_shorter(rows: int) -> Iterator[pa.RecordBatch]:
        reads.append(rows)
        batches = list(whole.batches(rows))
        return iter(batches[: len(batches) - (lost if len(reads) > 1 else 0)])

    with pytest.raises(DataError, match="its rows changed as they were read; expected a file that stays as it is"):
        compare(models.bundles["table3"], models.bundles["table7"], replace(whole, _open=open_shorter))
