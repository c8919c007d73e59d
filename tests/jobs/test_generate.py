"""Files of invented rows, and of the way between two rows."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vaeserve import Client, Interpolation
from vaeserve.bundle import Bundle
from vaeserve.errors import ConfigError, DataError, InvalidInputError
from vaeserve.local import LocalService
from vaeserve.signature import Signature
from vaeserve.source import Source, inputs_of, open_source
from vaeserve_jobs.decoded import columns_of, grid, new_rows
from vaeserve_jobs.generate import generate_file, interpolate_file
from vaeserve_jobs.job import BATCH_ROWS
from vaeserve_jobs.model import LocalModel, ServerModel
from vaeserve_jobs.output import new_output

COUNT = BATCH_ROWS + 1000


@pytest.fixture(params=["local", "server"])
def coder_of(request: pytest.FixtureRequest, models: Any, service: LocalService) -> Iterator[Any]:
    """What computes for a kind of model, in this process or through the service: `coder_of(kind)`."""
    opened: list[LocalModel | ServerModel] = []

    def coder(kind: str) -> LocalModel | ServerModel:
        local = request.param == "local"
        path = models.bundles[kind].path
        opened.append(LocalModel.open(path) if local else ServerModel(service.target, kind))
        return opened[-1]

    yield coder
    for engine in opened:
        engine.close()


@pytest.fixture
def mixed(models: Any) -> LocalModel:
    """The table of all kinds of columns, in this process."""
    return LocalModel.open(models.bundles["mixed"].path)


@pytest.fixture
def image(models: Any) -> LocalModel:
    """The grey images, in this process."""
    return LocalModel.open(models.bundles["image"].path)


@pytest.fixture
def mixed_rows(models: Any, inputs_of: Any, tmp_path: Path) -> Source:
    """20,000 rows of the table of all kinds in a file; in row 7 a number is missing where none was in training."""
    inputs = inputs_of("mixed", 20_000)
    inputs["numeric"][7, 0] = np.nan
    signature = models.bundles["mixed"].manifest.signature
    columns = dict(zip(signature.features, columns_of(inputs, signature), strict=True))
    pq.write_table(pa.table({"id": np.arange(20_000), **columns}), tmp_path / "rows.parquet")
    return open_source(str(tmp_path / "rows.parquet"))


@pytest.fixture
def pictures(rows_of: Any, tmp_path: Path) -> Source:
    """Grey images in a file."""
    np.save(tmp_path / "rows.npy", rows_of("image", 30))
    return open_source(str(tmp_path / "rows.npy"))


def bundle_of(models: Any, kind: str) -> Bundle:
    """Return a kind's bundle."""
    bundle: Bundle = models.bundles[kind]
    return bundle


def test_a_generated_table_is_the_services(models: Any, coder_of: Any, client: Client, tmp_path: Path) -> None:
    """A table has the columns by their names, with the bits of `Client.generate`, however many batches it took."""
    batches: list[int] = []
    generate_file(
        tmp_path / "o.parquet", coder=coder_of("mixed"), count=COUNT, seed=3, temperature=0.8, on_batch=batches.append
    )
    assert batches == [BATCH_ROWS, 1000]
    table = pq.read_table(tmp_path / "o.parquet")
    expected = client.generate("mixed", COUNT, seed=3, temperature=0.8).outputs
    signature = bundle_of(models, "mixed").manifest.signature
    assert table.schema.names == list(signature.features)
    numbers = [table[column.name].to_numpy() for column in signature.numeric_columns]
    assert np.column_stack(numbers).tobytes() == expected["numeric"].tobytes()
    strings = [table[column.name].to_pylist() for column in signature.categorical_columns]
    assert strings == expected["categorical"].T.tolist()
    bits = [table[column.name].to_numpy() for column in signature.columns if column.kind == "binary"]
    assert all(((probability > 0) & (probability < 1)).all() for probability in bits)


def test_generated_images_are_the_services(coder_of: Any, client: Client, tmp_path: Path) -> None:
    """Images are an array X of uint8 with the bits of `Client.generate`, and files that can be read as rows again."""
    for name in ("o.npz", "o.npy"):
        generate_file(tmp_path / name, coder=coder_of("conv"), count=20, seed=4)
    expected = client.generate("conv", 20, seed=4).outputs["image"]
    with np.load(tmp_path / "o.npz") as arrays:
        assert list(arrays) == ["X"]
        assert arrays["X"].dtype == np.uint8
        assert arrays["X"].tobytes() == np.load(tmp_path / "o.npy").tobytes() == expected.tobytes()
    (batch,) = open_source(str(tmp_path / "o.npz")).batches()
    assert inputs_of(batch, Signature.image((3, 9, 7)))["image"].tobytes() == expected.tobytes()


def test_a_csv_file_holds_what_a_parquet_file_does(mixed: LocalModel, tmp_path: Path) -> None:
    """Numbers go to text and back without a bit lost, categories stay text, and the file can be scored."""
    for name in ("o.csv", "o.parquet"):
        generate_file(tmp_path / name, coder=mixed, count=50)
    table = pq.read_table(tmp_path / "o.parquet")
    convert = pyarrow.csv.ConvertOptions(column_types=table.schema)
    assert pyarrow.csv.read_csv(tmp_path / "o.csv", convert_options=convert).equals(table)


def test_no_rows_are_a_file_of_none(mixed: LocalModel, image: LocalModel, tmp_path: Path) -> None:
    """A count of 0 gives the columns without a row, and an array of no images; a picture of none is refused."""
    for name in ("o.csv", "o.parquet"):
        generate_file(tmp_path / name, coder=mixed, count=0)
        source = open_source(str(tmp_path / name))
        assert source.schema.names == list(mixed.signature.features)
        assert list(source.batches()) == []
    generate_file(tmp_path / "o.npy", coder=image, count=0)
    assert np.load(tmp_path / "o.npy").shape == (0, 1, 5, 6)
    with pytest.raises(ConfigError, match="o.png: a picture of 0 images; expected 1 to 10000, or .npy"):
        generate_file(tmp_path / "o.png", coder=image, count=0)
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize("method", Interpolation)
def test_a_tables_interpolation_ends_at_the_reconstructions(
    coder_of: Any, client: Client, mixed_rows: Source, tmp_path: Path, method: Interpolation
) -> None:
    """From row to row the steps are numbered, the ends are the two rows' reconstructions, the rest the service's."""
    coder = coder_of("mixed")
    start, end = 18_000, 2
    interpolate_file(mixed_rows, tmp_path / "o.parquet", coder=coder, start=start, end=end, steps=6, method=method)
    table = pq.read_table(tmp_path / "o.parquet")
    assert table.schema.names == ["step", *coder.signature.features]
    assert table["step"].to_pylist() == list(range(6))
    rows = inputs_of(mixed_rows.table().take([start, end]), coder.signature)
    ends = columns_of(client.reconstruct("mixed", rows).outputs, coder.signature)
    means = client.encode("mixed", rows).mean
    between = columns_of(client.interpolate("mixed", *means, steps=6, method=method).outputs, coder.signature)
    for name, reconstructed, values in zip(coder.signature.features, ends, between, strict=True):
        column = table[name].to_numpy()
        np.testing.assert_array_equal(column[[0, -1]], reconstructed)
        np.testing.assert_array_equal(column, values)


def test_a_path_longer_than_a_batch_is_one(mixed: LocalModel, mixed_rows: Source, tmp_path: Path) -> None:
    """Steps are numbered on from batch to batch, and every one of them is there."""
    interpolate_file(mixed_rows, tmp_path / "o.parquet", coder=mixed, start=0, end=1, steps=COUNT)
    assert pq.read_table(tmp_path / "o.parquet")["step"].to_pylist() == list(range(COUNT))


def test_images_interpolate_to_a_strip(coder_of: Any, client: Client, pictures: Source, tmp_path: Path) -> None:
    """An interpolation of images is an array of them, or one picture with the steps from left to right."""
    for name in ("o.npy", "o.png"):
        interpolate_file(pictures, tmp_path / name, coder=coder_of("image"), start=29, end=3, steps=4)
    images = np.load(tmp_path / "o.npy")
    rows = np.load(pictures.name)[[29, 3]]
    assert images[[0, -1]].tobytes() == client.reconstruct("image", rows).outputs["image"].tobytes()
    with Image.open(tmp_path / "o.png") as picture:
        assert (picture.mode, picture.size) == ("L", (4 * 6 + 3, 5))
        pixels = np.asarray(picture)
    for step, shown in enumerate(images):
        assert pixels[:, 7 * step : 7 * step + 6].tobytes() == shown[0].tobytes()


def test_a_picture_of_colours_is_a_grid(models: Any, tmp_path: Path) -> None:
    """Generated images of three channels make an RGB picture about as wide as high, in their order."""
    conv = LocalModel.open(models.bundles["conv"].path)
    for name in ("o.npy", "o.png"):
        generate_file(tmp_path / name, coder=conv, count=7)
    with Image.open(tmp_path / "o.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (3 * 7 + 2, 3 * 9 + 2))
        pixels = np.asarray(picture)
    assert pixels.tobytes() == grid(np.load(tmp_path / "o.npy"), 3).tobytes()
    assert pixels[10:19, 8:15].tobytes() == np.load(tmp_path / "o.npy")[4].transpose(1, 2, 0).tobytes()
    assert (pixels[20:, 8:] == 255).all()


def test_the_same_row_twice_goes_nowhere(mixed: LocalModel, mixed_rows: Source, tmp_path: Path) -> None:
    """From a row to itself every step is its reconstruction, by either method."""
    for method in Interpolation:
        out = tmp_path / f"{method.value}.csv"
        interpolate_file(mixed_rows, out, coder=mixed, start=5, end=5, steps=3, method=method)
        assert len({line.split(",", 1)[1] for line in out.read_text().splitlines()[1:]}) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start": 20_000}, ConfigError, "--start 20000: .*rows.parquet has 20000 rows; expected 0 to 19999"),
        ({"end": -1}, ConfigError, "--end -1: .*rows.parquet has 20000 rows; expected 0 to 19999"),
        ({"end": 7}, DataError, "rows.parquet: --end 7: UNSCORABLE_MISSING; expected a row that the model can take"),
        ({"steps": 1}, InvalidInputError, "steps: 1; expected a whole number from 2"),
        ({"steps": 2**32 - 1}, InvalidInputError, "steps: 4294967295; expected a whole number from 2 to 1000000"),
    ],
)
def test_rows_that_cannot_be_interpolated_are_named(
    mixed: LocalModel, mixed_rows: Source, tmp_path: Path, options: Any, error: type[Exception], message: str
) -> None:
    """A row that isn't there or that the model can't take is refused by its flag, with nothing written."""
    with pytest.raises(error, match=message):
        interpolate_file(mixed_rows, tmp_path / "o.csv", coder=mixed, **({"start": 0, "end": 1} | options))
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.parquet"]


def test_numbers_that_cannot_be_drawn_leave_nothing(mixed: LocalModel, tmp_path: Path) -> None:
    """A negative count and a temperature out of its range are refused by name, with nothing written."""
    with pytest.raises(InvalidInputError, match="count: -1; expected"):
        generate_file(tmp_path / "o.csv", coder=mixed, count=-1)
    with pytest.raises(InvalidInputError, match="temperature: 200; expected a number from 0 to 100"):
        generate_file(tmp_path / "o.csv", coder=mixed, count=5, temperature=200)
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_hold_the_rows_are_refused(mixed: LocalModel, image: LocalModel, tmp_path: Path) -> None:
    """A table goes to no image's file nor an image to a table's, and a folder that isn't there is named."""
    with pytest.raises(ConfigError, match=r"o.png: expected a .csv or .parquet file, for the model makes a table"):
        generate_file(tmp_path / "o.png", coder=mixed, count=5)
    with pytest.raises(ConfigError, match=r"o.csv: expected a .npy or .npz or .png file, for the model makes images"):
        generate_file(tmp_path / "o.csv", coder=image, count=5)
    with pytest.raises(ConfigError, match="No such file or directory; nothing was written"):
        generate_file(tmp_path / "none" / "o.csv", coder=mixed, count=5)
    with (
        pytest.raises(ConfigError, match="o.png: images of 2 channels; expected .npy or .npz"),
        new_rows(tmp_path / "o.png", Signature.image((2, 3, 3)), rows=1),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="the model has a column 'step' of its own"),
        new_rows(tmp_path / "o.csv", Signature.numbers(["a", "step"]), rows=1, steps=True),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_picture_too_large_to_look_at_is_refused_before_the_work(
    image: LocalModel, pictures: Source, tmp_path: Path
) -> None:
    """A picture has so many images and pixels at most; more of either are refused before any is decoded."""
    decoded: list[int] = []
    with pytest.raises(ConfigError, match="a picture of 10001 images; expected 1 to 10000, or .npy or .npz"):
        generate_file(tmp_path / "o.png", coder=image, count=10_001, on_batch=decoded.append)
    with pytest.raises(ConfigError, match="a picture of 10001 images; expected 1 to 10000, or .npy or .npz"):
        interpolate_file(pictures, tmp_path / "o.png", coder=image, start=0, end=1, steps=10_001)
    large = Signature.image((1, 1000, 1000))
    message = "a picture of 10009 x 10009 pixels; expected 67108864 at most, or .npy or .npz"
    with pytest.raises(ConfigError, match=message), new_rows(tmp_path / "o.png", large, rows=100):
        pass
    assert decoded == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.npy"]
    with new_rows(tmp_path / "o.npy", large, rows=100_000):
        pass


@pytest.mark.parametrize("name", ["o.csv", "o.parquet"])
def test_a_fault_of_what_is_read_is_not_the_outputs(mixed: LocalModel, tmp_path: Path, name: str) -> None:
    """An OSError from elsewhere, while the output is open, stays what it is, and nothing is written."""
    with (
        pytest.raises(OSError, match="the source's disk"),
        new_rows(tmp_path / name, mixed.signature, rows=1),
    ):
        raise OSError(5, "the source's disk")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "name"), [("mixed", "o.csv"), ("mixed", "o.parquet"), ("image", "o.npy")])
def test_a_full_disk_is_the_outputs_fault(models: Any, tmp_path: Path, kind: str, name: str) -> None:
    """What can't be written, while rows come or in the end, is a message that names the output."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, models.bundles[kind].path, tmp_path / name],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = "600000 requested and 872 written" if kind == "image" else "File too large"  # NumPy gives no reason
    assert done.stdout == f"ConfigError: --out {tmp_path / name}: {said}; nothing was written\n", done.stderr
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from vaeserve_jobs.model import LocalModel
from vaeserve_jobs.generate import generate_file

engine = LocalModel.open(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    generate_file(Path(sys.argv[2]), coder=engine, count=20_000)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def test_a_fault_in_closing_does_not_hide_the_first(tmp_path: Path) -> None:
    """Where the block has failed, and the output can't be closed either, the block's fault is said."""

    @contextmanager
    def opened(_: Path) -> Iterator[None]:
        try:
            yield
        finally:
            raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="a bad row"), new_output(tmp_path / "o", opened):
        raise DataError("a bad row")
    with pytest.raises(ConfigError, match="o: No space left on device; nothing"), new_output(tmp_path / "o", opened):
        pass
