"""Scoring files."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vaeserve import Client
from vaeserve.errors import ConfigError, DataError, InvalidInputError
from vaeserve.local import LocalService
from vaeserve.scores import ScoreOptions
from vaeserve.source import Source, open_source
from vaeserve_jobs.engine import LocalEngine, ServerEngine
from vaeserve_jobs.score import Summary, score_file

OPTIONS = ScoreOptions()


@pytest.fixture
def engine(models: Any) -> LocalEngine:
    """The table of 7 columns, in this process."""
    return LocalEngine.open(models.bundles["table7"].path)


@pytest.fixture
def rows(rows_of: Any) -> np.ndarray:
    """More rows than a batch, one of them with a missing value."""
    many: np.ndarray = rows_of("table7", 9000)
    many[8500, 3] = np.nan
    return many


@pytest.fixture
def source(tmp_path: Path, rows: np.ndarray) -> Source:
    """Those rows in a Parquet file, columns in another order, beside others."""
    columns = {f"c{index}": rows[:, index] for index in reversed(range(7))}
    table = pa.table({"id": np.arange(len(rows)), **columns, "note": ["n"] * len(rows)})
    pq.write_table(table, tmp_path / "in.parquet", write_page_checksum=True)
    return open_source(str(tmp_path / "in.parquet"))


def test_every_row_is_scored_in_order(
    engine: LocalEngine, source: Source, rows: np.ndarray, tmp_path: Path, client: Client
) -> None:
    """The output has each row's score, in the input's order, with the columns asked for; bits are the service's."""
    seen: list[int] = []
    summary = score_file(
        source,
        tmp_path / "out.parquet",
        engine=engine,
        options=OPTIONS,
        keep=["id"],
        on_batch=lambda s: seen.append(s.rows),
    )
    out = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert out["id"] == list(range(9000))
    assert seen == [8192, 9000]
    expected = client.score("table7", rows)
    assert np.array(out["score"], np.float32).tobytes() == expected.score.tobytes()
    assert out["anomalous"] == expected.anomalous.tolist()
    np.testing.assert_array_equal(out["p_value"], expected.p_value)
    assert (out["status"][0], out["status"][8500]) == ("OK", "UNSCORABLE_MISSING")
    assert summary == Summary(rows=9000, anomalous=int(expected.anomalous.sum()), unscorable=1)


def test_a_service_scores_the_same_file_the_same(
    engine: LocalEngine, source: Source, tmp_path: Path, service: LocalService
) -> None:
    """Through a running service the output is the same as in process."""
    options = ScoreOptions(top_features=2)
    score_file(source, tmp_path / "local.parquet", engine=engine, options=options)
    through = ServerEngine(service.target, "table7")
    score_file(source, tmp_path / "server.parquet", engine=through, options=options)
    through.close()
    local, server = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("local", "server"))
    assert local.schema == server.schema
    assert "top_features" in local.schema.names
    assert [column.cast(pa.string()) for column in local.select(["score", "p_value", "status"]).columns] == [
        column.cast(pa.string()) for column in server.select(["score", "p_value", "status"]).columns
    ]
    assert local["top_features"] == server["top_features"]


def test_images_are_scored_too(models: Any, rows_of: Any, tmp_path: Path) -> None:
    """An array of images scores as the runtime does."""
    np.save(tmp_path / "i.npy", rows_of("image", 50))
    image = LocalEngine.open(models.bundles["image"].path)
    assert (
        score_file(open_source(str(tmp_path / "i.npy")), tmp_path / "o.parquet", engine=image, options=OPTIONS).rows
        == 50
    )
    assert pq.read_table(tmp_path / "o.parquet").num_rows == 50


def test_nothing_half_written_when_a_row_group_is_broken(engine: LocalEngine, source: Source, tmp_path: Path) -> None:
    """An input that breaks in the midst leaves no output, not even a part of one."""
    path = Path(source.name)
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2 : len(broken) // 2 + 5000] = bytes(5000)
    path.write_bytes(broken)
    with pytest.raises(DataError, match="in.parquet"):
        score_file(open_source(str(path)), tmp_path / "out.parquet", engine=engine, options=OPTIONS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.parquet"]


def test_what_does_not_fit_is_named(engine: LocalEngine, source: Source, tmp_path: Path) -> None:
    """A missing column, a column to keep that isn't there or collides, and a bad folder are refused."""
    (tmp_path / "t.csv").write_text("c0,c1\n1,2\n")
    out = tmp_path / "out.parquet"
    with pytest.raises(InvalidInputError, match="t.csv: rows: column 'c2' is missing .and 4 more."):
        score_file(open_source(str(tmp_path / "t.csv")), out, engine=engine, options=OPTIONS)
    with pytest.raises(DataError, match="no column 'customer' to keep; expected one of id, c6"):
        score_file(source, out, engine=engine, options=OPTIONS, keep=["customer"])
    with pytest.raises(ConfigError, match="No such file or directory; nothing was written"):
        score_file(source, tmp_path / "none" / "out.parquet", engine=engine, options=OPTIONS)
    pq.write_table(pa.table({"score": [1.0]}), tmp_path / "clash.parquet")
    with pytest.raises(ConfigError, match="--keep score: the output has a column of that name"):
        score_file(open_source(str(tmp_path / "clash.parquet")), out, engine=engine, options=OPTIONS, keep=["score"])
    assert not out.exists()


def test_text_where_numbers_are_needed_is_named(engine: LocalEngine, tmp_path: Path) -> None:
    """A text column is refused with its name, its type and a value."""
    (tmp_path / "t.csv").write_text(",".join(f"c{i}" for i in range(7)) + "\n" + "1,2,3,4,5,6,tall\n")
    with pytest.raises(
        InvalidInputError, match="column 'c6': string, 'tall' in the first row; the model takes numbers"
    ):
        score_file(open_source(str(tmp_path / "t.csv")), tmp_path / "o.parquet", engine=engine, options=OPTIONS)


def test_a_kept_column_may_be_one_that_the_model_takes(engine: LocalEngine, tmp_path: Path) -> None:
    """A CSV column that begins with whole numbers can be scored and carried through at once, fractions and all."""
    lines = [",".join(f"c{i}" for i in range(7)), *["1,2,3,4,5,6,7"] * 100_000, "1,2,3,4.5,5,6,7"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "o.parquet"
    score_file(open_source(str(tmp_path / "t.csv")), out, engine=engine, options=OPTIONS, keep=["c3"])
    kept = pq.read_table(out)["c3"].to_pylist()
    assert (kept[0], kept[-1]) == (4, 4.5)
