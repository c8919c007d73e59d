"""`vaeserve generate` and `interpolate`, as a person types them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from vaeserve import Client
from vaeserve.local import LocalService
from vaeserve_jobs.command import bytes_of, turn_of


def run(*arguments: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run `vaeserve` with these arguments."""
    command = [sys.executable, "-m", "vaeserve", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, cwd=cwd)


def test_generating_in_process_and_through_a_service(
    models: Any, service: LocalService, client: Client, tmp_path: Path
) -> None:
    """`generate` writes the same file with a bundle and through a service, and its options reach the draws."""
    options = ["--count", 30, "--seed", 6, "--temperature", 0.7, "--json"]
    for out, where in (
        ("a.parquet", ["--bundle", models.bundles["table7"].path]),
        ("b.parquet", ["--server", service.target, "--model", "table7"]),
    ):
        done = run("generate", *where, *options, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"out": out, "rows": 30}
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    expected = client.generate("table7", 30, seed=6, temperature=0.7).outputs["numeric"]
    written = pq.read_table(tmp_path / "a.parquet")
    assert np.column_stack([column.to_numpy() for column in written.columns]).tobytes() == expected.tobytes()


def test_interpolating_in_process_and_through_a_service(
    models: Any, service: LocalService, rows_of: Any, tmp_path: Path
) -> None:
    """`interpolate` writes the same file with a bundle and through a service, and says what it wrote."""
    np.save(tmp_path / "rows.npy", rows_of("image", 20))
    options = ["--data", "rows.npy", "--start", 3, "--end", 19, "--steps", 5, "--method", "spherical"]
    for out, where in (
        ("a.npz", ["--bundle", models.bundles["image"].path]),
        ("b.npz", ["--server", service.target, "--model", "image"]),
    ):
        done = run("interpolate", *where, *options, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1] == f"wrote 5 rows to {out}"
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--count", 5, "--out", "o.csv"], "expected either --bundle DIR, or --server HOST:PORT with"),
        (["generate", "--bundle", "{image}", "--count", -1, "--out", "o.npy"], "count: -1; expected a whole number"),
        (
            ["generate", "--bundle", "{image}", "--count", 5, "--out", "o.csv"],
            "--out o.csv: expected a .npy or .npz or",
        ),
        (
            ["interpolate", "--start", 0, "--end", 1, "--method", "round"],
            "--method round: expected linear or spherical",
        ),
        (
            ["interpolate", "--start", 0, "--end", 1, "--steps", 2**32 - 1],
            "steps: 4294967295; expected a whole number from 2 to 1000000",
        ),
        (["interpolate", "--start", 0, "--end", 20], "--end 20: rows.npy has 20 rows; expected 0 to 19"),
        (
            ["interpolate", "--start", 0, "--end", 1, "--out", "rows.npy"],
            "--out rows.npy: is the input; expected anoth",
        ),
    ],
)
def test_bad_usage_is_one_message_and_exit_code_2(
    models: Any, rows_of: Any, tmp_path: Path, arguments: list[object], message: str
) -> None:
    """Each fault of the person's is one message that names it, exit code 2, no traceback, and nothing written."""
    np.save(tmp_path / "rows.npy", rows_of("image", 20))
    command, *flags = (str(models.bundles["image"].path) if flag == "{image}" else flag for flag in arguments)
    if command == "interpolate":
        flags = ["--bundle", models.bundles["image"].path, "--data", "rows.npy", "--out", "o.npy", *flags]
    done = run(command, *flags, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert len(done.stderr.splitlines()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.npy"]


def test_a_turn_is_stated_or_kubernetes() -> None:
    """`I/N` says which of how many processes this is; of `N` alone the index is in the environment."""
    assert turn_of("1/3", {"JOB_COMPLETION_INDEX": "2"}) == (1, 3)
    assert turn_of("3", {"JOB_COMPLETION_INDEX": "2"}) == (2, 3)
    assert turn_of(None, {"JOB_COMPLETION_INDEX": "2"}) is None


def test_sizes_are_read_as_they_are_written() -> None:
    """Sizes have units of 1024, with or without a B, and may be fractions."""
    assert [bytes_of(size) for size in ("512MiB", "512M", "0.5 gib", "536870912")] == [2**29] * 4
