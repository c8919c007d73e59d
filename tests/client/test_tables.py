"""Tables in files: their formats, their pieces, and the folders they lie in."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaeserve.errors import DataError
from vaeserve.files import files_at, locate
from vaeserve.signature import Column, Signature
from vaeserve.source import Source, inputs_of, open_source
from vaeserve.tables import BLOCK


def pieces_of(source: Source, rows: int, columns: list[str], batch: int = 1000) -> list[Any]:
    """Return the rows of all pieces of a source, each piece read by itself."""
    return [
        row
        for number in range(len(source.files))
        for piece in source.cut(number, rows)
        for some in source.read(piece, columns, batch)
        for row in some.to_pylist()
    ]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-5, 5), st.text("ab, \n\"'é", max_size=6)), min_size=1, max_size=60),
    st.integers(1, 30),
    st.sampled_from(["csv", "jsonl", "parquet"]),
    st.booleans(),
)
def test_pieces_add_up_to_the_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str]], many: int, kind: str, windows: bool
) -> None:
    """However a file is cut, quotes and line ends in its values included, its pieces have its rows, each once."""
    path = tmp_path_factory.mktemp("cut") / f"t.{kind}"
    table = pa.table({"n": [number for number, _ in rows], "t": [text + "." for _, text in rows]})
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=7)
    elif kind == "csv":
        pyarrow.csv.write_csv(table, path)
        if windows and b'\n"' not in path.read_bytes().partition(b"\n")[2]:
            path.write_bytes(path.read_bytes().replace(b'"t"', b"t"))
    else:
        end = "\r\n" if windows else "\n"
        path.write_text(end.join(json.dumps(row) for row in table.to_pylist()), newline="")
    source = open_source(str(path)).as_text(["t"])
    assert pieces_of(source, many, ["t", "n"]) == table.select(["t", "n"]).to_pylist()


def test_text_without_quotes_is_cut_and_other_text_is_not(tmp_path: Path) -> None:
    """Lines of CSV are told apart where no value is quoted; a header may be. JSON's always are."""
    lines = "".join(f"{i},{i}.5\n" for i in range(20_000))
    (tmp_path / "plain.csv").write_text(f'"a","b"\n{lines}')
    (tmp_path / "quoted.csv").write_text(f'a,b\n{lines}7,"7.5"\n')
    (tmp_path / "odd.csv").write_text(f'"a\nx",b\n{lines}')
    for name, cut in (("plain.csv", True), ("quoted.csv", False), ("odd.csv", False)):
        source = open_source(str(tmp_path / name))
        pieces = source.cut(0, 5000)
        assert (len(pieces) > 1) == cut, name
        assert all(one.stop == other.start for one, other in pairwise(pieces))
        assert abs(sum(piece.rows for piece in pieces) - 20_000) < 2000
        assert [row["b"] for row in pieces_of(source, 5000, ["b"])][:20_000] == [i + 0.5 for i in range(20_000)]


def test_a_value_with_a_line_end_may_lie_anywhere(tmp_path: Path) -> None:
    """A quoted line end at the end of a block is part of its value."""
    rows = BLOCK // 6
    (tmp_path / "t.csv").write_text("a,b\n" + '1,"x\ny"\n' * rows)
    batches = list(open_source(str(tmp_path / "t.csv")).batches())
    assert sum(batch.num_rows for batch in batches) == rows
    assert {value for batch in batches for value in batch.column("b").to_pylist()} == {"x\ny"}


def test_folders_of_name_and_value_are_columns(tmp_path: Path) -> None:
    """Whole numbers are numbers if all are; codes keep their zeros; the null's name is null; escapes are undone."""
    for folder in ("day=01/n=1/s=a%20b", "day=2/n=7/s=__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / folder / "0.parquet")
    source = open_source(str(tmp_path))
    assert source.rows == 4
    assert source.schema.names == ["x", "day", "n", "s"]
    assert source.table().to_pylist()[1:3] == [
        {"x": 2.0, "day": "01", "n": 1, "s": "a b"},
        {"x": 1.0, "day": "2", "n": 7, "s": None},
    ]
    assert pieces_of(source, 10, ["n"]) == [{"n": 1}, {"n": 1}, {"n": 7}, {"n": 7}]


def test_files_of_a_folder_are_read_as_the_first(tmp_path: Path) -> None:
    """Other types are those of the first file, a column that one lacks is null there, and hidden files are no files."""
    pq.write_table(pa.table({"a": [1.5], "b": ["x"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": pa.array([2], pa.int32())}), tmp_path / "1.parquet")
    for name in ("_SUCCESS", "_part.parquet", ".2.parquet"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "_top").mkdir()
    (tmp_path / "_top" / "3.parquet").write_bytes(b"")
    source = open_source(str(tmp_path))
    assert source.table().to_pylist() == [{"a": 1.5, "b": "x"}, {"a": 2.0, "b": None}]
    assert (source.missing(0, ["a", "b"]), source.missing(1, ["a", "b"])) == ([], ["b"])
    pq.write_table(pa.table({"a": ["late"]}), tmp_path / "4.parquet")
    with pytest.raises(DataError, match=r"4.parquet: column 'a': string; expected double"):
        open_source(str(tmp_path)).table()
    (tmp_path / "5.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"beside files of .csv, .parquet; expected a folder of one format"):
        open_source(str(tmp_path))


def test_json_lines_are_read_by_what_they_are(tmp_path: Path) -> None:
    """Numbers that begin whole may be widened, text stays text, a field that a line lacks is null."""
    lines = [{"a": 1, "s": "01"}, {"a": None}, {"s": "x", "other": [1]}, {"a": 2.5}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_source(str(tmp_path / "t.jsonl")).as_numbers(["a"]).as_text(["s", "a"])
    assert pieces_of(source, 100, ["a", "s"])[:2] == [{"a": 1.0, "s": "01"}, {"a": None, "s": None}]
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match=r"bad.jsonl: can't be read as .jsonl"):
        open_source(str(tmp_path / "bad.jsonl"))


def test_urls_are_files_too(tmp_path: Path) -> None:
    """A table is read by its URL, pyarrow's or fsspec's; what isn't there, or of no such scheme, is said."""
    import fsspec

    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "t.parquet")
    fsspec.filesystem("memory").pipe("/tables/in/t.parquet", (tmp_path / "t.parquet").read_bytes())
    for name in (f"file://{tmp_path}/t.parquet", "memory://tables/in/t.parquet", "memory://tables/in"):
        assert open_source(name).table().to_pydict() == {"a": [1.0]}
    (file,) = files_at("memory://tables/in") or []
    assert file.name == "memory://tables/in/t.parquet"
    with pytest.raises(DataError, match="memory://tables/none: no such file, folder"):
        open_source("memory://tables/none")
    with pytest.raises(DataError, match="nosuch://x: .*nosuch"):
        locate("nosuch://x")


def test_a_batch_is_the_tensors_that_its_table_is(tmp_path: Path) -> None:
    """Columns of any type make the bits that a table of them makes: nulls, decimals, truths, codes, dictionaries."""
    del tmp_path
    columns = {
        "whole": pa.array([1, None, 2**53 + 1]),
        "single": pa.array([0.1, None, 3], pa.float32()),
        "truth": pa.array([True, None, False]),
        "decimal": pa.array([1, None, 2], pa.decimal128(5, 2)),
        "code": pa.array([2**53 + 1, None, 7]),
        "name": pa.array(["a", None, "b"]).dictionary_encode(),
        "flag": pa.array([True, False, None]),
    }
    kinds: dict[str, Any] = dict.fromkeys(["whole", "single", "truth", "decimal"], "numeric")
    signature = Signature.table(
        [
            Column(name, kinds.get(name, "categorical"), () if name in kinds else ("a", "b"), nullable=True)
            for name in columns
        ]
    )
    batch = pa.record_batch(columns)
    made, expected = inputs_of(batch, signature), signature.inputs_from(pa.table(batch))
    assert made["numeric"].tobytes() == expected["numeric"].tobytes()
    assert made["categorical"].tolist() == expected["categorical"].tolist()
    alone = pa.record_batch({"numeric": pa.array([1.0, 2.0])})
    assert inputs_of(alone, Signature.numbers(["numeric"]))["numeric"].tolist() == [[1.0], [2.0]]
