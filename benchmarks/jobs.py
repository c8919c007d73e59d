"""Batch scoring of a file, against ONNX Runtime alone and against what a user would write."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks import models

ROWS = 10_000_000
GROUP_ROWS = 250_000
# How much of the rows those get that would take long: their rows a second are compared.
CSV_SHARE, LOOP_SHARE, PYOD_SHARE = 0.2, 0.05, 0.005
PYOD = Path(__file__).with_name("pyod_decide.py")

Run = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--work", type=Path, help="a folder that keeps the model and the rows for the next time")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the Parquet file (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each of all in turn (default: %(default)s)")
    parser.add_argument("--pyod-python", help="a Python that has pyod (3.6.7), torch and tqdm")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Score the rows by each in turn, each in a process of its own; ratios are medians over the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        bundle = models.tab(work).path
        files = _files(work, options.rows)
        rounds = [_round(bundle, files, options.pyod_python) for _ in range(options.rounds)]
    return {"rows": options.rows, "features": models.TAB_FEATURES, **_figures(rounds), "rounds": rounds}


def _figures(rounds: Sequence[dict[str, Run]]) -> dict[str, Any]:
    def ratio(a: str, b: str, name: str = "rows_per_s") -> float | None:
        if a not in rounds[0] or b not in rounds[0]:
            return None
        ratios: list[float] = [run[a][name] / run[b][name] for run in rounds]
        return round(statistics.median(ratios), 3)

    return {
        "job_to_onnxruntime": ratio("job", "onnxruntime"),
        "onnxruntime_cpu_to_job": ratio("onnxruntime", "job", "cpu_us_per_row"),
        "two_cores_to_one": ratio("job_of_csv_rows", "one_core"),
        "csv_to_parquet": ratio("csv", "job_of_csv_rows"),
        "job_to_pandas_loop": ratio("job", "pandas_loop"),
        "job_to_pyod": ratio("job", "pyod"),
        "first_row_s": max(run["job"]["first_row_s"] for run in rounds),
        "peak_mib": max(run["job"]["peak_mib"] for run in rounds),
        "peak_mib_of_a_fifth": max(run["job_of_csv_rows"]["peak_mib"] for run in rounds),
    }


def _round(bundle: Path, files: dict[str, Path], pyod_python: str | None) -> dict[str, Run]:
    cores = sorted(os.sched_getaffinity(0))
    two, one = cores[:2], cores[:1]
    runs = {
        "onnxruntime": _run("onnxruntime", bundle, files["some"], cores=two),
        "job": _run("job", bundle, files["all"], cores=two),
        "one_core": _run("job", bundle, files["csv_rows"], cores=one),
        "job_of_csv_rows": _run("job", bundle, files["csv_rows"], cores=two),
        "csv": _run("job", bundle, files["csv"], cores=two),
        "pandas_loop": _run("pandas_loop", bundle, files["some"], cores=two),
    }
    if pyod_python:
        runs["pyod"] = _pyod(pyod_python, files["few"])
    for name, run in runs.items():
        print(name, run, file=sys.stderr)
    return runs


def _run(what: str, bundle: Path, rows: Path, *, cores: list[int]) -> Run:
    """Run one of `benchmarks.job_run` on so many cores, and return its figures with its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [what, str(bundle), str(rows), f"{folder}/out", str(time.time()), *map(str, cores)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.job_run", *arguments], check=True, stdout=subprocess.PIPE, text=True
        )
    figures: Run = json.loads(done.stdout.splitlines()[-1])
    return figures


def _pyod(python: str, rows: Path) -> Run:
    command = [python, "-I", str(PYOD), str(rows)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: Run = json.loads(done.stdout.splitlines()[-1])
    return figures


def _files(work: Path, rows: int) -> dict[str, Path]:
    """Return the files of rows, made unless `work` has them."""
    counts = {"all": rows, "csv_rows": int(rows * CSV_SHARE), "some": int(rows * LOOP_SHARE)}
    files = {name: work / f"rows-{count}.parquet" for name, count in counts.items()}
    for name, path in files.items():
        if not path.exists():
            _write(path, counts[name])
    files["csv"] = files["csv_rows"].with_suffix(".csv")
    if not files["csv"].exists():
        _write_csv(files["csv_rows"], files["csv"])
    files["few"] = work / f"rows-{rows}.npy"
    np.save(files["few"], _rows(max(1000, int(rows * PYOD_SHARE)), 0))
    return files


def _write(path: Path, rows: int) -> None:
    names = [f"x{index}" for index in range(models.TAB_FEATURES)]
    with pq.ParquetWriter(path, pa.schema([(name, pa.float32()) for name in names]), compression="snappy") as writer:
        for start in range(0, rows, GROUP_ROWS):
            values = _rows(min(GROUP_ROWS, rows - start), start)
            writer.write_table(pa.table(dict(zip(names, values.T, strict=True))))


def _write_csv(parquet: Path, path: Path) -> None:
    schema = pq.read_schema(parquet)
    with pyarrow.csv.CSVWriter(path, schema) as writer:
        for batch in pq.ParquetFile(parquet).iter_batches():
            writer.write_batch(batch)


def _rows(count: int, start: int) -> np.ndarray[Any, Any]:
    from vaeserve.signature import Signature

    names = [f"x{index}" for index in range(models.TAB_FEATURES)]
    return models.rows(Signature.numbers(names), count, seed=start + 1)["numeric"]
