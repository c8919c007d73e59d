"""The detection benchmark, in small: a few steps on two sets, where they are there, and on rows made here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import detection
from benchmarks.__main__ import main

SETS = Path(__file__).parents[3] / "shared" / "data"
BRIEFLY = ("--set", "optimizer.max_steps=300", "--set", "model.exemplars=500")


def measured(data: Path, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run the benchmark of the preset `fast`, and return its results."""
    out = tmp_path / "results.json"
    main(["detection", "--data", str(data), "--presets", "fast", "--seeds", "1", "--out", str(out), *arguments])
    results: dict[str, Any] = json.loads(out.read_text())
    return results


def write_ring(folder: Path, *, normal: int = 300, anomalies: int = 40) -> None:
    """Write a set: normal rows on a circle, anomalies about its middle."""
    generator = np.random.default_rng(0)
    angle = generator.uniform(0, 2 * np.pi, normal)
    ring = np.column_stack([np.cos(angle), np.sin(angle)]) + 0.05 * generator.normal(size=(normal, 2))
    rows = np.concatenate([ring, 0.1 * generator.normal(size=(anomalies, 2))])
    folder.mkdir()
    np.savez(folder / "1_ring.npz", X=rows, y=np.repeat([0, 1], [normal, anomalies]))


@pytest.mark.skipif(not (SETS / "adbench").is_dir(), reason=f"needs ADBench's sets in {SETS / 'adbench'}")
@pytest.mark.slow
def test_detects_in_two_small_sets(tmp_path: Path) -> None:
    """Three hundred steps tell most anomalies; in vowels a model that learned nothing gets an AUROC of 0.67."""
    results = measured(SETS, tmp_path, "--sets", "WBC", "vowels", *BRIEFLY)
    figures = results["presets"]["fast"]
    assert figures["sets"]["WBC"]["auroc"] > 0.96
    assert figures["sets"]["vowels"]["auroc"] > 0.88
    assert figures["mean"]["average_precision"] > 0.5
    assert 0 < figures["mean"]["train_cpu_s"] < 30
    assert figures["mean"]["score_cpu_s"] > 0


@pytest.mark.slow
def test_goes_on_from_its_cache(tmp_path: Path) -> None:
    """Each run is kept, and only runs of the same settings are taken from the file."""
    write_ring(tmp_path / "adbench")
    cache = tmp_path / "runs.jsonl"
    briefly = ("--cache", str(cache), "--set", "optimizer.max_steps=20")
    first = measured(tmp_path, tmp_path, *briefly)
    kept = json.loads(cache.read_text())
    assert first["runs"] == [kept]
    cache.write_text(json.dumps(kept | {"auroc": 0.125}) + "\n")
    assert measured(tmp_path, tmp_path, *briefly)["presets"]["fast"]["mean"]["auroc"] == 0.125
    other = measured(tmp_path, tmp_path, *briefly, "--set", "objective.beta=0.2")
    assert other["presets"]["fast"]["mean"]["auroc"] != 0.125
    assert len(cache.read_text().splitlines()) == 2


@pytest.mark.slow
def test_measures_what_contamination_costs(tmp_path: Path) -> None:
    """A clean and a contaminated training of as many rows are compared on the same test; intruders cost something."""
    write_ring(tmp_path / "adbench")
    results = measured(tmp_path, tmp_path, "--contamination", "0.1", *BRIEFLY)
    clean, contaminated = results["runs"]
    assert (clean["contaminated"], contaminated["contaminated"]) == (False, True)
    assert clean["train_rows"] == contaminated["train_rows"]
    assert clean["test_rows"] == contaminated["test_rows"] == 150 + 40 - 15
    figures = results["presets"]["fast"]
    assert clean["auroc"] > 0.9
    assert figures["lost"]["auroc"] == pytest.approx(clean["auroc"] - contaminated["auroc"], abs=2e-5)
    assert figures["lost"]["auroc"] > 0


def test_means_are_over_sets_and_seeds() -> None:
    """A seed's figure is the mean of its sets', a set's the mean of its seeds', and the whole the mean of all."""
    runs = [
        {"set": name, "seed": seed, "auroc": auroc, "average_precision": 0.5, "train_cpu_s": cpu, "score_cpu_s": 1.0}
        for name, seed, auroc, cpu in (("a", 0, 0.8, 2.0), ("b", 0, 1.0, 4.0), ("a", 1, 0.7, 2.0), ("b", 1, 0.9, 6.0))
    ]
    figures = detection.summary(runs)
    assert figures["mean"]["auroc"] == pytest.approx(0.85)
    assert {seed: mean["auroc"] for seed, mean in figures["seeds"].items()} == pytest.approx({"0": 0.9, "1": 0.8})
    assert {name: mean["auroc"] for name, mean in figures["sets"].items()} == pytest.approx({"a": 0.75, "b": 0.95})
    assert figures["slowest_set_train_cpu_s"] == 5.0
