"""Scoring files."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vaeserve import Client
from vaeserve.errors import ConfigError, DataError, InvalidInputError
from vaeserve.local import LocalService
from vaeserve.messages import INPUT_DTYPES
from vaeserve.scores import RowStatus, ScoreOptions, Scores
from vaeserve.signature import Column, Signature
from vaeserve.source import Source, open_source
from vaeserve.tensors import from_tensors
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import add_VaeServiceServicer_to_server
from vaeserve_jobs.engine import Inputs, LocalEngine, ServerEngine
from vaeserve_jobs.score import Summary, score_file

OPTIONS = ScoreOptions()
MIXED = Signature.table(
    [Column("zip", "categorical", ("01234", "A1")), Column("age", "numeric"), Column("city", "categorical", ("Rome",))]
)


class Recorder:
    """An engine for `MIXED` that keeps what it is given, and finds nothing anomalous."""

    signature = MIXED

    def __init__(self) -> None:
        self.inputs: list[Inputs] = []

    def score(self, inputs: Inputs, options: ScoreOptions) -> Scores:
        """Return zeros."""
        del options
        self.inputs.append(inputs)
        zeros = np.zeros(len(inputs["numeric"]), np.float32)
        status = np.full(len(zeros), RowStatus.OK, np.int8)
        return Scores("m", "1", zeros, zeros, zeros, zeros, zeros.astype(float), zeros > 0, status)

    def close(self) -> None:
        """Let go of nothing."""


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


def test_a_table_of_all_kinds_reaches_the_engine_as_two_inputs(tmp_path: Path) -> None:
    """Codes in a CSV file keep their zeros, and whatever else comes later; an empty cell is missing."""
    lines = ["age,zip,city,note", *["1,01234,Rome,n"] * 100_000, ",A1,,n", "2.5,,Paris,n"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    engine = Recorder()
    summary = score_file(open_source(str(tmp_path / "t.csv")), tmp_path / "o.parquet", engine=engine, options=OPTIONS)
    assert summary.rows == 100_002
    numeric, categorical = (
        np.concatenate([some[name] for some in engine.inputs]) for name in ("numeric", "categorical")
    )
    assert categorical[[0, -2, -1]].tolist() == [["01234", "Rome"], ["A1", ""], ["", "Paris"]]
    np.testing.assert_array_equal(numeric[[0, -2, -1], 0], [1, np.nan, 2.5])


class RecordingService:
    """A service with one model, of `MIXED`, that keeps the inputs that it is sent."""

    def __init__(self) -> None:
        self.inputs: list[dict[str, np.ndarray]] = []

    def GetModel(self, request: Any, context: Any) -> pb.GetModelResponse:  # noqa: N802 - gRPC's name
        """Return the model."""
        del request, context
        return pb.GetModelResponse(
            model=pb.ModelSpec(name="m", version="3"),
            inputs=[pb.TensorSpec(name=i.name, dtype=INPUT_DTYPES[i.dtype], shape=i.shape) for i in MIXED.inputs],
            columns=[pb.Column(name=c.name, kind=c.kind, categories=c.categories) for c in MIXED.columns],
            manifest="{}",
        )

    ListModels = Encode = Decode = Reconstruct = Generate = Interpolate = ScoreStream = GetModel

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:  # noqa: N802 - gRPC's name
        """Return no scores."""
        del context
        assert request.model.version == "3"
        self.inputs.append(from_tensors(request.inputs))
        return pb.ScoreResponse(model=request.model)


def test_a_server_is_sent_every_input() -> None:
    """Numbers and categories both reach a service, for the version that the job began with."""
    recorded: Any = RecordingService()
    server = grpc.server(ThreadPoolExecutor(1))
    add_VaeServiceServicer_to_server(recorded, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    engine = ServerEngine(f"127.0.0.1:{port}", "m")
    try:
        engine.score(MIXED.inputs_from({"age": [1, None], "zip": ["A1", "7"], "city": ["Rome", None]}), OPTIONS)
    finally:
        engine.close()
        server.stop(None).wait()
    (inputs,) = recorded.inputs
    np.testing.assert_array_equal(inputs["numeric"], [[1], [np.nan]])
    assert inputs["categorical"].tolist() == [["A1", "Rome"], ["7", ""]]
