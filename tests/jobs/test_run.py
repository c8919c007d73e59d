"""Jobs from the first look at their input to `_SUCCESS`."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tests.jobs.conftest import ROWS, RunJob, Watched, parts
from vaeserve import Client
from vaeserve.errors import ConfigError, DataError, InvalidInputError, RefusedError
from vaeserve.local import LocalService
from vaeserve.scores import RowStatus, ScoreOptions
from vaeserve_jobs import Address, Encode, Reconstruct, Score, StoppedError, finish_only

SHARDED = {
    "shard_rows": 1000
}  # which a row group of 700 fits in: seven shards of the table, for the last group has 100


def test_every_row_is_scored_in_order_with_the_services_bits(
    run_job: RunJob, table_file: Path, table_rows: NDArray[Any], tmp_path: Path, client: Client
) -> None:
    """The output has each row's score, in the input's order, with what was kept; bits are the service's."""
    watched = Watched()
    summary = run_job(table_file, tmp_path / "out", keep=["id", "note"], watch=watched, **SHARDED)
    out = pq.read_table(tmp_path / "out")
    assert out["id"].to_pylist() == list(range(ROWS))
    assert out["note"][ROWS - 1].as_py() == f"n{ROWS - 1}"
    expected = client.score("table7", table_rows)
    for name in ("score", "elbo", "log_likelihood", "kl", "p_value"):
        assert out[name].to_numpy().tobytes() == getattr(expected, name).tobytes(), name
    assert out["anomalous"].to_pylist() == expected.anomalous.tolist()
    assert [out["status"][row].as_py() for row in (0, 77, 4321)] == [
        "OK",
        "UNSCORABLE_NOT_FINITE",
        "UNSCORABLE_MISSING",
    ]
    assert watched.counted == ROWS
    assert watched.shards == list(range(7))
    assert (summary["rows"], summary["written"], summary["shards"]) == (ROWS, ROWS, 7)
    assert summary["anomalous"] == int(expected.anomalous.sum()) > 0
    assert summary["unscorable"] == {"UNSCORABLE_MISSING": 1, "UNSCORABLE_NOT_FINITE": 1}


def test_the_summary_says_how_scores_lie(
    run_job: RunJob, table_file: Path, table_rows: NDArray[Any], tmp_path: Path, client: Client
) -> None:
    """Quantiles are within the error that is stated, and the drift is what the scores make of the calibration."""
    summary = run_job(table_file, tmp_path / "out", **SHARDED)
    expected = client.score("table7", table_rows)
    scored = expected.status == RowStatus.OK
    for level, value in summary["quantiles"].items():
        exact = np.sort(expected.score[scored])[round(float(level) * (scored.sum() - 1))]
        assert abs(value - exact) <= summary["quantile_error"] * abs(exact)
    drift, p_values = summary["drift"], expected.p_value[scored]
    assert drift["rows"] == scored.sum()
    assert all(share == np.mean(p_values <= float(p)) for p, share in drift["p_values"].items())
    assert drift["kl"]["mean"] == pytest.approx(expected.kl[scored].astype(float).mean())
    assert json.loads((tmp_path / "out" / "_summary.json").read_text()) == summary


@pytest.mark.parametrize("workers", [1, 3])
def test_the_bytes_are_the_same_whoever_computes(
    run_job: RunJob, table_file: Path, tmp_path: Path, workers: int, service: LocalService
) -> None:
    """Through a service, with other threads and with hardly any memory the parts are the same, to the byte."""
    task = Score(ScoreOptions(top_features=3))
    local = run_job(table_file, tmp_path / "local", task=task, keep=["id"], **SHARDED)
    address = Address(server=service.target, name="table7")
    server = run_job(table_file, tmp_path / "server", task=task, keep=["id"], address=address, **SHARDED)
    run_job(table_file, tmp_path / "small", task=task, keep=["id"], workers=workers, memory=1, **SHARDED)
    assert parts(tmp_path / "local") == parts(tmp_path / "server") == parts(tmp_path / "small")
    assert (local | {"run": {}}) == (server | {"run": {}})


def test_top_features_are_the_services(
    run_job: RunJob, table_file: Path, table_rows: NDArray[Any], tmp_path: Path, client: Client
) -> None:
    """Each row's top features are the service's attributions; a row without a score has none."""
    run_job(table_file, tmp_path / "out", task=Score(ScoreOptions(top_features=2)))
    lists = pq.read_table(tmp_path / "out")["top_features"].to_pylist()
    expected = client.score("table7", table_rows, top_features=2).attributions
    assert [[(one["feature"], one["excess"]) for one in row] for row in lists] == [
        [(one.feature, one.excess) for one in row] for row in expected
    ]
    assert (len(lists[0]), len(lists[77])) == (2, 0)


def test_the_output_reads_as_a_data_set(run_job: RunJob, table_file: Path, tmp_path: Path) -> None:
    """Pyarrow and pandas read the folder by its path, Polars its parts, and each part says which model it is of."""
    run_job(table_file, tmp_path / "out.parquet", task=Score(top=3), **SHARDED)
    assert len(pq.read_table(tmp_path / "out.parquet")) == ROWS
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == ROWS
    assert len(pl.read_parquet(tmp_path / "out.parquet" / "*.parquet")) == ROWS
    first = pq.ParquetFile(tmp_path / "out.parquet" / "part-00000.parquet")
    plan = json.loads((tmp_path / "out.parquet" / "_plan.json").read_text())
    assert first.metadata.metadata[b"vaeserve.model"] == b"table7"
    assert first.metadata.metadata[b"vaeserve.model_version"] == b"1"
    assert first.metadata.metadata[b"vaeserve.manifest_sha256"].decode() == plan["model"]["manifest_sha256"]
    assert first.metadata.row_group(0).column(0).compression == "ZSTD"
    names = sorted(path.name for path in (tmp_path / "out.parquet").iterdir())
    assert names == [
        "_SUCCESS", "_plan.json", "_summary.json", "_top.jsonl", *(f"part-0000{shard}.parquet" for shard in range(7))
    ]  # fmt: skip


def test_only_anomalous_rows_are_written_if_asked(run_job: RunJob, table_file: Path, tmp_path: Path) -> None:
    """The others are left out, at the rate that was asked for, and counted all the same."""
    run_job(table_file, tmp_path / "all", keep=["id"], task=Score(ScoreOptions(false_positive_rate=0.1)))
    task = Score(ScoreOptions(false_positive_rate=0.1), only_anomalous=True)
    summary = run_job(table_file, tmp_path / "some", keep=["id"], task=task)
    every = pq.read_table(tmp_path / "all")
    assert pq.read_table(tmp_path / "some").equals(every.filter(every["anomalous"]))
    assert summary["rows"] == ROWS
    assert 0 < summary["written"] == summary["anomalous"] < ROWS


def test_the_worst_rows_are_gathered(run_job: RunJob, table_file: Path, tmp_path: Path) -> None:
    """`_top.jsonl` has the rows that score highest of all shards, the worst first, as they are in the parts."""
    table = pq.read_table(table_file)
    source = tmp_path / "in.parquet"
    pq.write_table(table.append_column("size", pa.array([float("inf")] * ROWS)), source, row_group_size=700)
    task = Score(ScoreOptions(top_features=1), top=40)
    run_job(source, tmp_path / "out", keep=["id", "size"], task=task, **SHARDED)
    # JSON has no number for infinity.
    rows = [row | {"size": None} for row in pq.read_table(tmp_path / "out").to_pylist()]
    worst = sorted((row for row in rows if row["status"] == "OK"), key=lambda row: (-row["score"], row["id"]))[:40]
    assert [json.loads(line) for line in (tmp_path / "out" / "_top.jsonl").read_text().splitlines()] == worst


@pytest.mark.parametrize("kind", ["table7", "mixed", "image"])
def test_rows_are_encoded_and_reconstructed(
    run_job: RunJob, models: Any, inputs_of: Any, tmp_path: Path, client: Client, kind: str
) -> None:
    """The posterior as lists, and the reconstruction as the model's columns or images, are the service's."""
    inputs = inputs_of(kind, 50)
    signature = models.bundles[kind].manifest.signature
    if kind == "image":
        np.save(tmp_path / "in.npy", inputs["image"])
        source = tmp_path / "in.npy"
    else:
        numbers, strings = iter(inputs["numeric"].T), iter(inputs["categorical"].T if "categorical" in inputs else ())
        columns = {c.name: next(strings if c.kind == "categorical" else numbers) for c in signature.columns}
        source = tmp_path / "in.parquet"
        pq.write_table(pa.table(columns), source)
    run_job(source, tmp_path / "encoded", kind=kind, task=Encode())
    encoded, expected = pq.read_table(tmp_path / "encoded"), client.encode(kind, inputs)
    for name in ("mean", "log_variance"):
        assert np.array(encoded[name].to_pylist(), np.float32).tobytes() == getattr(expected, name).tobytes()
    run_job(source, tmp_path / "made", kind=kind, task=Reconstruct())
    made, outputs = pq.read_table(tmp_path / "made"), client.reconstruct(kind, inputs).outputs
    if kind == "image":
        assert np.array(made["image"].to_pylist(), np.uint8).tobytes() == outputs["image"].tobytes()
        return
    numeric = [column.name for column in signature.numeric_columns]
    assert np.column_stack([made[name].to_numpy() for name in numeric]).tobytes() == outputs["numeric"].tobytes()
    for place, column in enumerate(signature.categorical_columns):
        assert made[column.name].to_pylist() == outputs["categorical"][:, place].tolist()


def test_every_format_gives_the_same_scores(run_job: RunJob, table_file: Path, tmp_path: Path) -> None:
    """The same rows in CSV, packed or not, JSON lines, and a folder of Parquet score to the same bits."""
    table = pq.read_table(table_file)
    finite = table.filter(pa.compute.is_finite(table["c0"]))  # which JSON has no infinity for
    (tmp_path / "folder").mkdir()
    pq.write_table(finite[:3000], tmp_path / "folder" / "a.parquet")
    pq.write_table(finite[3000:], tmp_path / "folder" / "b.parquet")
    pyarrow.csv.write_csv(finite, tmp_path / "t.csv", pyarrow.csv.WriteOptions(quoting_style="none"))
    pyarrow.csv.write_csv(finite, tmp_path / "quoted.csv")
    with pa.CompressedOutputStream(tmp_path / "t.csv.gz", "gzip") as packed:
        packed.write((tmp_path / "t.csv").read_bytes())
    lines = (
        json.dumps({name: None if value != value else value for name, value in row.items()})
        for row in finite.to_pylist()
    )
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    tables = []
    for name in ("folder", "t.csv", "quoted.csv", "t.csv.gz", "t.jsonl"):
        run_job(tmp_path / name, tmp_path / f"{name}.out", keep=["id"], shard_rows=1000)
        tables.append(pq.read_table(tmp_path / f"{name}.out"))
        # Lines of text can be told apart where no value may hold the end of one.
        assert (len(parts(tmp_path / f"{name}.out")) > 2) == (name in ("t.csv", "t.jsonl"))
    for some in tables:
        assert list(map(str, some["id"].to_pylist())) == list(map(str, tables[0]["id"].to_pylist()))
        assert some["score"].to_numpy().tobytes() == tables[0]["score"].to_numpy().tobytes()


def test_hive_partitions_are_columns(run_job: RunJob, table_file: Path, tmp_path: Path) -> None:
    """What the folders say is a feature or is kept as any other column."""
    table = pq.read_table(table_file).drop_columns(["c6"])
    for c6, day in ((1, "2024-01-01"), (30, "2024-01-02")):
        folder = tmp_path / "in" / f"day={day}" / f"c6={c6}"
        folder.mkdir(parents=True)
        pq.write_table(table[:100], folder / "0.parquet")
    run_job(tmp_path / "in", tmp_path / "out", keep=["day", "c6", "id"])
    out = pq.read_table(tmp_path / "out")
    assert out["day"].to_pylist() == ["2024-01-01"] * 100 + ["2024-01-02"] * 100
    assert out["c6"].to_pylist() == [1] * 100 + [30] * 100
    assert out["score"][0] != out["score"][100]


def test_an_object_store_is_read_and_written(run_job: RunJob, table_file: Path, tmp_path: Path) -> None:
    """Input and output may be URLs, and what is there can be resumed and is refused as anywhere."""
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe("/bucket/in/a.parquet", table_file.read_bytes())
    watched = Watched(stop_after=2000)
    with pytest.raises(StoppedError):
        run_job("memory://bucket/in", "memory://bucket/out", watch=watched, **SHARDED)
    with pytest.raises(ConfigError, match=r"memory://bucket/out: has _plan.json in it; expected --resume"):
        run_job("memory://bucket/in", "memory://bucket/out", **SHARDED)
    summary = run_job("memory://bucket/in", "memory://bucket/out", resume=True, **SHARDED)
    run_job(table_file, tmp_path / "out", **SHARDED)
    assert summary["rows"] == ROWS
    names = sorted(Path(path).name for path in store.ls("/bucket/out", detail=False))
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())
    there = pq.read_table("bucket/out/part-00001.parquet", filesystem=store)
    assert there.equals(pq.read_table(tmp_path / "out" / "part-00001.parquet"))


def test_a_stopped_job_goes_on_where_it_was(run_job: RunJob, table_file: Path, tmp_path: Path) -> None:
    """What was done is not done again, and in the end all bytes are those of a job that was never stopped."""
    run_job(table_file, tmp_path / "whole", **SHARDED)
    first = Watched(stop_after=2500)
    with pytest.raises(StoppedError):
        run_job(table_file, tmp_path / "out", watch=first, **SHARDED)
    assert 0 < len(first.shards) < 7
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "_plan.json", *(f"part-{shard:05}.parquet" for shard in first.shards)
    ]  # fmt: skip
    # A part that was cut short, as a store without renames may leave it, is none.
    cut = tmp_path / "out" / "part-00000.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    # So is one of another job.
    run_job(table_file, tmp_path / "other", keep=["id"], **SHARDED)
    (tmp_path / "out" / "part-00001.parquet").write_bytes((tmp_path / "other" / "part-00001.parquet").read_bytes())
    second = Watched()
    run_job(table_file, tmp_path / "out", watch=second, resume=True, **SHARDED)
    assert sorted({*first.shards, *second.shards}) == list(range(7))
    assert set(first.shards) & set(second.shards) == {0, 1}
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")
    third = Watched()
    assert run_job(table_file, tmp_path / "out", watch=third, resume=True, **SHARDED)["rows"] == ROWS
    assert third.shards == []


def test_a_job_of_other_things_is_not_resumed(run_job: RunJob, table_file: Path, tmp_path: Path) -> None:
    """What has changed is named, the input's files or the options; and an output that isn't free is refused."""
    source = tmp_path / "in.parquet"
    source.write_bytes(table_file.read_bytes())
    out = tmp_path / "out"
    run_job(source, out, **SHARDED)
    with pytest.raises(ConfigError, match=r"has _SUCCESS in it; expected --resume, or a folder that is new or empty"):
        run_job(source, out, **SHARDED)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"task": Score(ScoreOptions(false_positive_rate=0.2))}, "option false_positive_rate: 0.2, was None"),
        ({"keep": ["id"]}, "option keep: id, was none"),
        ({"shard_rows": 500}, "option shard-rows: other shards"),
        ({"task": Encode()}, "option kind: encode, was score"),
    ]
    for change, said in changes:
        with pytest.raises(ConfigError, match=f"is of another job: .*{said}"):
            run_job(source, out, resume=True, **{**SHARDED, **change})
    pq.write_table(pq.read_table(source)[:-1], source, row_group_size=700)
    with pytest.raises(ConfigError, match=r"input: .*in.parquet has changed"):
        run_job(source, out, resume=True, **SHARDED)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"has notes.txt in it; expected a folder that is new or empty"):
        run_job(source, tmp_path / "other", **SHARDED)
    with pytest.raises(ConfigError, match=r"has notes.txt in it and no _plan.json"):
        run_job(source, tmp_path / "other", resume=True, **SHARDED)
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        run_job(table_file, source, **SHARDED)
    (out / "_plan.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="_plan.json: .*: no plan of this version; expected another --out"):
        run_job(source, out, resume=True, **SHARDED)


def test_an_output_is_none_of_the_inputs_files(run_job: RunJob, table_file: Path, tmp_path: Path) -> None:
    """An output that the next job would read as rows is refused; not so one beside the input, or passed over."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.parquet").write_bytes(table_file.read_bytes())
    with pytest.raises(ConfigError, match=r"--out .*in/scores: lies in the input.*; expected a folder elsewhere"):
        run_job(folder, folder / "scores")
    with pytest.raises(ConfigError, match="lies in the input"):
        run_job(f"{folder}/", f"{folder}/day=1/scores", resume=True)
    assert [path.name for path in folder.iterdir()] == ["a.parquet"]
    for out in (folder / "_scores", tmp_path / "in-scores"):
        assert run_job(folder, out)["rows"] == run_job(folder, out, resume=True)["rows"] == ROWS


def test_another_model_is_told(run_job: RunJob, models: Any, table_file: Path, tmp_path: Path) -> None:
    """A bundle whose manifest differs in a byte is another model."""
    import shutil

    out, other = tmp_path / "out", tmp_path / "table7" / "1"
    run_job(table_file, out)
    shutil.copytree(models.bundles["table7"].path, other)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace("\n", "\n "))
    with pytest.raises(ConfigError, match="is of another job: model manifest_sha256: "):
        run_job(table_file, out, resume=True, address=Address(bundle=str(other)))


def test_processes_share_a_job_by_their_index(run_job: RunJob, table_file: Path, tmp_path: Path) -> None:
    """Each runs its own shards without word from the others; the last one writes the summary."""
    run_job(table_file, tmp_path / "whole", **SHARDED)
    out = tmp_path / "out"
    for turn in ((2, 3), (0, 3)):
        watched = Watched()
        assert run_job(table_file, out, turn=turn, watch=watched, **SHARDED) is None
        assert watched.shards == list(range(turn[0], 7, 3))
        with pytest.raises(RefusedError, match=r"of 7 shards aren't done: .*1"):
            finish_only(str(out))
    assert not (out / "_SUCCESS").exists()
    assert run_job(table_file, out, turn=(1, 3), **SHARDED)["rows"] == ROWS
    assert parts(out) == parts(tmp_path / "whole")
    assert run_job(table_file, out, turn=(1, 3), **SHARDED)["rows"] == ROWS  # a pod that is started again


def test_finish_writes_the_summary_alone(run_job: RunJob, table_file: Path, tmp_path: Path) -> None:
    """Where all parts are there, `finish_only` makes the summary of them, once."""
    whole = run_job(table_file, tmp_path / "out", **SHARDED)
    (tmp_path / "out" / "_SUCCESS").unlink()
    (tmp_path / "out" / "_summary.json").unlink()
    assert finish_only(str(tmp_path / "out")) == whole | {"run": {}}
    assert (tmp_path / "out" / "_SUCCESS").exists()
    with pytest.raises(ConfigError, match=r"none: has no _plan.json; expected the output of a job"):
        finish_only(str(tmp_path / "none"))


def test_finishing_takes_no_more_memory_for_more_shards(run_job: RunJob, table_rows: Any, tmp_path: Path) -> None:
    """What was counted of shards is added up as it is read: of 200, whose counts are 1 MiB each, a few are held."""
    lines = [",".join(f"c{i}" for i in range(7)), *(",".join(f"{value:9.4f}" for value in row) for row in table_rows)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    whole = run_job(tmp_path / "t.csv", tmp_path / "out", task=Score(top=7), shard_rows=25)
    assert whole["shards"] >= 199
    for name in ("_SUCCESS", "_summary.json"):
        (tmp_path / "out" / name).unlink()
    tracemalloc.start()
    try:
        assert finish_only(str(tmp_path / "out")) == whole | {"run": {}}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80 * 2**20


def test_what_cannot_be_read_of_an_output_is_named(run_job: RunJob, table_file: Path, tmp_path: Path) -> None:
    """Where the plan or the summary can't be read, that is said, whatever asks for it."""
    out = tmp_path / "out"
    run_job(table_file, out)
    (out / "_summary.json").unlink()
    with pytest.raises(ConfigError, match=r"--out .*_summary\.json"):
        run_job(table_file, out, resume=True)
    (out / "_plan.json").unlink()
    (out / "_plan.json").mkdir()
    with pytest.raises(ConfigError, match=r"--out .*_plan\.json"):
        run_job(table_file, out, resume=True)
    with pytest.raises(ConfigError, match=r"--out .*_plan\.json"):
        finish_only(str(out))


def test_files_that_cannot_be_read_are_all_named_before_anything_is_scored(
    run_job: RunJob, table_file: Path, tmp_path: Path
) -> None:
    """Broken files, and such as lack a column, stop the job with their names; or are left out and listed."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "c"):
        (folder / f"{name}.parquet").write_bytes(table_file.read_bytes())
    (folder / "b.parquet").write_bytes(b"PAR1 broken")
    pq.write_table(pq.read_table(table_file).drop_columns(["c2"]), folder / "d.parquet")
    with pytest.raises(DataError) as refusal:
        run_job(folder, tmp_path / "out")
    said = str(refusal.value)
    assert "2 of 4 files can't be read: " in said
    assert "b.parquet: can't be read as .parquet" in said
    assert "d.parquet: no column 'c2'" in said
    assert not (tmp_path / "out").exists()
    summary = run_job(folder, tmp_path / "out", skip_bad_files=True)
    assert summary["rows"] == 2 * ROWS
    assert [Path(one["file"]).name for one in summary["skipped_files"]] == ["b.parquet", "d.parquet"]


def test_a_file_that_breaks_off_stops_the_job_or_is_listed(run_job: RunJob, table_file: Path, tmp_path: Path) -> None:
    """Pages that rotted are told as they are read: the job stops with the file's name and no half part, or goes on."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "c"):
        (folder / f"{name}.parquet").write_bytes(table_file.read_bytes())
    broken = bytearray(table_file.read_bytes())
    broken[len(broken) // 2 : len(broken) // 2 + 5000] = bytes(5000)
    (folder / "b.parquet").write_bytes(broken)
    with pytest.raises(DataError, match=r"b\.parquet: "):
        run_job(folder, tmp_path / "out", shard_rows=5000)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_plan.json", "part-00000.parquet"]
    summary = run_job(folder, tmp_path / "skipped", skip_bad_files=True, shard_rows=5000)
    assert 2 * ROWS <= summary["rows"] < 3 * ROWS
    assert [Path(one["file"]).name for one in summary["skipped_files"]] == ["b.parquet"]


def test_a_file_that_is_replaced_while_it_is_read_stops_the_job(
    run_job: RunJob, table_file: Path, tmp_path: Path
) -> None:
    """Rows of two versions of a file are never in one output: the shard that met the other one isn't written."""
    source = tmp_path / "in.parquet"
    source.write_bytes(table_file.read_bytes())

    class Replacing(Watched):
        def shard(self, shard: int, tally: Any) -> None:
            super().shard(shard, tally)
            (tmp_path / "new.parquet").write_bytes(table_file.read_bytes())
            (tmp_path / "new.parquet").replace(source)

    watched = Replacing()
    with pytest.raises(DataError, match=r"in\.parquet: has changed since"):
        run_job(source, tmp_path / "out", watch=watched, memory=1, **SHARDED)
    assert len(watched.shards) < 7
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"_plan.json", *(f"part-{shard:05}.parquet" for shard in watched.shards)}


def test_what_does_not_fit_is_named(run_job: RunJob, table_file: Path, tmp_path: Path, service: LocalService) -> None:
    """A missing column, text for numbers, a column to keep that isn't there or collides: nothing is written."""
    (tmp_path / "few.csv").write_text("c0,c1\n1,2\n")
    (tmp_path / "tall.csv").write_text(",".join(f"c{i}" for i in range(7)) + "\n1,2,3,4,5,6,tall\n")
    (tmp_path / "empty.csv").write_text(",".join(f"c{i}" for i in range(7)) + "\n")
    pq.write_table(pa.table({"score": [1.0], **{f"c{i}": [1.0] for i in range(7)}}), tmp_path / "clash.parquet")
    out = tmp_path / "out"
    with pytest.raises(InvalidInputError, match=r"few.csv: rows: column 'c2' is missing .and 4 more."):
        run_job(tmp_path / "few.csv", out)
    with pytest.raises(InvalidInputError, match=r"tall.csv: column 'c6': string, 'tall'"):
        run_job(tmp_path / "tall.csv", out)
    with pytest.raises(DataError, match="empty.csv: no rows; expected one or more"):
        run_job(tmp_path / "empty.csv", out)
    with pytest.raises(DataError, match="no column 'identity'; expected one of c0.*id"):
        run_job(table_file, out, keep=["identity"])
    with pytest.raises(ConfigError, match="--keep score: the output has a column of that name"):
        run_job(tmp_path / "clash.parquet", out, keep=["score"])
    with pytest.raises(ConfigError, match="--keep id: is given twice; expected each once"):
        run_job(table_file, out, keep=["id", "note", "id"])
    with pytest.raises(InvalidInputError, match="false_positive_rate: 1e-05; .* calibration rows support"):
        run_job(table_file, out, task=Score(ScoreOptions(false_positive_rate=1e-5)))
    address = Address(server=service.target, name="table7")
    with pytest.raises(InvalidInputError, match="false_positive_rate: 1e-05"):
        run_job(table_file, out, task=Score(ScoreOptions(false_positive_rate=1e-5)), address=address)
    with pytest.raises(ConfigError, match="--skip-bad-files: digits is of images; expected a table"):
        run_job("digits", out, skip_bad_files=True)
    assert not out.exists()


def test_a_kept_column_may_be_one_that_the_model_takes(run_job: RunJob, tmp_path: Path) -> None:
    """A CSV column that begins with whole numbers can be scored and carried through at once, fractions and all."""
    lines = [",".join(f"c{i}" for i in range(7)), *["1,2,3,4,5,6,7"] * 100_000, "1,2,3,4.5,5,6,7"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    run_job(tmp_path / "t.csv", tmp_path / "out", keep=["c3"])
    kept = pq.read_table(tmp_path / "out")["c3"].to_pylist()
    assert (kept[0], kept[-1]) == (4, 4.5)


def test_what_is_kept_of_a_csv_file_stays_as_it_is_written(run_job: RunJob, tmp_path: Path) -> None:
    """A code keeps its zeros, a number its digits, and what begins as numbers needn't stay so."""
    said = [("00123", "1.10", "7")] * 60_000 + [("9" * 30, "1e3", "none")]
    lines = [",".join([*(f"c{i}" for i in range(7)), "code", "price", "size"])]
    lines += [",".join(["1.5"] * 7 + list(kept)) for kept in said]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    run_job(tmp_path / "t.csv", tmp_path / "out", keep=["code", "price", "size"])
    kept = pq.read_table(tmp_path / "out").select(["code", "price", "size"])
    assert list(zip(*(column.to_pylist() for column in kept.columns), strict=True)) == said


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_kept_column_may_begin_empty(run_job: RunJob, tmp_path: Path, form: str) -> None:
    """A column whose first value comes later than a file's beginning is carried through as text."""
    rows = [{f"c{i}": 1.5 for i in range(7)} | {"note": None}] * 60_000
    table = pa.Table.from_pylist([*rows, rows[0] | {"note": "late"}])
    if form == "csv":
        pa.csv.write_csv(table, tmp_path / "t.csv")
    else:
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    run_job(tmp_path / f"t.{form}", tmp_path / "out", keep=["note"])
    kept = pq.read_table(tmp_path / "out")["note"]
    assert (kept.type, kept[-1].as_py()) == (pa.string(), "late")
    assert not any(kept[:-1].to_pylist())
