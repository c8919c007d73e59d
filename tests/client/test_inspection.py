"""A bundle as `vaeserve inspect` shows it."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.conftest import KINDS
from vaeserve.bundle import Bundle
from vaeserve.inspection import show
from vaeserve.scores import Bound


def shown(bundle: Bundle, *, width: int = 80) -> list[str]:
    """Return the lines that a terminal of this width shows."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show(bundle, console)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def words(bundle: Bundle) -> str:
    """Return all that is shown, on one line."""
    return " ".join(" ".join(shown(bundle, width=200)).split())


def changed(bundle: Bundle, folder: Path, **fields: Any) -> Bundle:
    """Return a copy of a bundle with other fields in its manifest."""
    shutil.copytree(bundle.path, folder)
    (folder / "manifest.json").write_text(json.dumps(json.loads(bundle.manifest_json) | fields))
    return Bundle.open(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_fits_a_terminal(models: Any, kind: str) -> None:
    """No line is wider than 80 characters, and nothing of them is cut off."""
    lines = shown(models.bundles[kind])
    assert max(map(len, lines)) <= 80
    assert models.bundles[kind].manifest_sha256 in " ".join(lines)
    assert "…" not in "".join(lines)


def test_what_a_bundle_takes_computes_and_promises_is_shown(models: Any) -> None:
    """Its tensors, columns, graphs, calibration, parity, provenance and files are there."""
    bundle = models.bundles["mixed"]
    manifest, text = bundle.manifest, words(bundle)
    for said in (
        "model mixed, version 1, format 1",
        "inputs numeric: FLOAT32, rows x 6; categorical: STRING, rows x 3",
        "c2 numeric yes",
        "c5 categorical yes a, bx, cxx",
        f"3 dimensions; prior: exemplars, {manifest.exemplars} of them",
        "student_t, bernoulli, categorical; in nats of standard-scaled values",
        f"2, of which number {manifest.best_member} encodes and decodes",
        f"{manifest.num_samples} of 256 points",
        f"scorer {sum(manifest.operators['scorer'].values())}",
        "opset 21",
        f"on {manifest.parity.rows} held-out rows: encoder ",
        "rows 120, and 0 that could not be scored",
        "at p <= 0.01; p is at least 0.00826",
        f"0.99 {manifest.calibration.quantiles[Bound.ELBO]['0.99']:.6g}",
        "trained on 360 rows of nnnbbcccn",
        "latent_dim 3",
        f"torch {manifest.training.versions['torch']}",
        f"onnxruntime {manifest.exported_with['onnxruntime']}",
        f"noise.npy {manifest.files['noise.npy'].bytes:,} {manifest.files['noise.npy'].sha256[:16]}...",
    ):
        assert said in text
    assert "derived from" not in text


@pytest.mark.parametrize("rate", [0.01, 2 / 121, 7 / 121])  # of 120 scores, a p-value is so many 121ths
def test_the_threshold_is_the_score_above_which_a_row_is_anomalous(models: Any, tmp_path: Path, rate: float) -> None:
    """A score at the threshold isn't anomalous at the bundle's rate, and the next number above it is."""
    bundle = changed(models.bundles["table7"], tmp_path / "1", false_positive_rate=rate)
    calibration, line = bundle.calibration, next(line for line in shown(bundle) if line.startswith("threshold"))
    scores = calibration.scores[Bound.ELBO]
    (threshold,) = scores[[f"elbo {score:.6g}," in line for score in scores]]
    above = np.nextafter(threshold, np.float32(np.inf))
    at, beyond = calibration.p_values(np.array([threshold, above]), Bound.ELBO)
    assert beyond <= calibration.false_positive_rate < at


def test_many_columns_and_categories_are_abbreviated(models: Any, tmp_path: Path) -> None:
    """Of 300 columns the first and the last are shown, a line each, names and categories with what tells them apart."""
    categories = [f"category number {index}" for index in range(40)]
    columns = [
        {"name": f"quantity_with_a_long_name_{index}", "kind": "categorical" if index % 3 == 0 else "numeric",
         "categories": categories if index % 3 == 0 else [], "nullable": index % 2 == 0}
        for index in range(300)
    ]  # fmt: skip
    inputs = [
        {"name": "numeric", "dtype": "FLOAT32", "shape": [-1, 200]},
        {"name": "categorical", "dtype": "STRING", "shape": [-1, 100]},
    ]
    signature = {"inputs": inputs, "columns": columns}
    bundle = changed(models.bundles["table7"], tmp_path / "1", signature=signature, feature_baseline=[0.0] * 300)
    lines = shown(bundle)
    assert max(map(len, lines)) <= 80
    assert len(lines) < 90
    assert "quantity_...ng_name_0  categorical  yes             category number 0, 39 more" in lines
    assert "... 276 more" in lines
    assert [line for line in lines if line.startswith("quantity_..._name_299")]


def test_an_image_has_no_columns_and_a_new_calibration_says_whose_graphs_it_has(models: Any, tmp_path: Path) -> None:
    """Nothing is said of columns where there are none; the version that a bundle is derived from is named."""
    text = words(changed(models.bundles["grey"], tmp_path / "1", derived_from="f" * 64))
    assert "image: UINT8, rows x 1 x 7 x 3" in text
    assert "may be missing" not in text
    assert f"derived from {'f' * 64}" in text


def test_markup_in_a_manifest_is_text(models: Any, tmp_path: Path) -> None:
    """What a manifest says is shown as it is, and no terminal reads it as anything else."""
    text = words(changed(models.bundles["table7"], tmp_path / "1", density="[red]x[/]", exported_with={"[b]": "[/b]"}))
    assert "in nats of [red]x[/]" in text
    assert "exported with [b] [/b]" in text


def test_no_text_of_a_manifest_commands_the_terminal(models: Any, tmp_path: Path) -> None:
    """Control characters in names, categories and the rest are shown as escapes, letters of any alphabet as such."""
    columns = [
        {"name": "\x1b[2J", "kind": "numeric"},
        {"name": "größe", "kind": "categorical", "categories": ["x\ny", "\x9b2J"]},
    ]
    inputs = [{"name": name, "dtype": dtype, "shape": [-1, 1]}
              for name, dtype in (("numeric", "FLOAT32"), ("categorical", "STRING"))]  # fmt: skip
    manifest = json.loads(models.bundles["table7"].manifest_json)
    bundle = changed(
        models.bundles["table7"], tmp_path / "1",
        signature={"inputs": inputs, "columns": columns}, feature_baseline=[0.0] * 2,
        density="a\x1b]0;title\x07", exported_with={"b\r": "\u202e"},
        training=manifest["training"] | {"data": "c\x1b[H", "config": {"seed": "\x1b[A"}},
        calibration=manifest["calibration"] | {"data": "d\x1b[H"},
        operators={graph: {"\x1b[K": 1} for graph in manifest["operators"]},
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=200)
    show(bundle, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(line.isprintable() for line in text.split("\n"))
    for said in (r"\x1b[2J", "größe", r"x\ny, \x9b2J", r"a\x1b]0;title\x07", r"b\r \u202e", r"c\x1b[H", r"d\x1b[H",
                 r"seed \x1b[A", r"\x1b[K 1"):  # fmt: skip
        assert said in text
