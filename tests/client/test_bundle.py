"""The bundle on disk: whole, or refused by name."""

import copy
import io
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaeserve.atomic import write_folder
from vaeserve.bundle import Bundle, write
from vaeserve.errors import BundleError, OperatorError
from vaeserve.manifest import Manifest, entries
from vaeserve.versions import models, versions, write_version
from vaeserve_service.runtime import Runtime


@pytest.fixture
def bundle(models: Any, tmp_path: Path) -> Path:
    """A copy of a bundle that a test may break."""
    return Path(shutil.copytree(models.bundles["table7"].path, tmp_path / "models" / "table7" / "1"))


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a bundle's manifest."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def change_file(bundle: Path, name: str, content: bytes) -> None:
    """Rewrite a file of a bundle, under a hash that is right again."""
    (bundle / name).write_bytes(content)
    change_manifest(bundle, lambda m: m["files"].update({name: entries({name: content})[name].model_dump()}))


def change_golden(bundle: Path, **arrays: Any) -> None:
    """Change or take away (None) golden arrays; in a name, `__` is `/`."""
    named = {name.replace("__", "/"): array for name, array in arrays.items()}
    golden = {name: array for name, array in (Bundle.open(bundle).golden | named).items() if array is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **golden)
    change_file(bundle, "golden.npz", buffer.getvalue())


def test_a_bundle_reads_back_what_was_written(bundle: Path) -> None:
    """An opened bundle has its manifest, noise, calibration, golden rows and graphs."""
    opened = Bundle.open(bundle)
    assert (opened.manifest.name, opened.version) == ("table7", "1")
    assert opened.noise.shape == (256, 3)
    assert opened.calibration.rows == opened.manifest.calibration.rows
    assert opened.golden["inputs/numeric"].shape[1] == 7
    assert opened.graph("scorer").startswith(b"\x08")


FILES = ["encoder.onnx", "decoder.onnx", "scorer.onnx", "noise.npy", "calibration.npy", "golden.npz"]


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused(bundle: Path, name: str) -> None:
    """A bundle with a file cut short doesn't open, and the file is named with both sizes."""
    whole = (bundle / name).read_bytes()
    (bundle / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match=rf"{name}: {len(whole) // 2} bytes; the manifest says {len(whole)}"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_one_bit_flipped_is_refused(bundle: Path, name: str) -> None:
    """A file whose hash differs is refused by whoever loads the model."""
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name}: SHA-256 .*; the manifest says"):
        _ = Runtime.load(Bundle.open(bundle)), Bundle.open(bundle).calibration


@pytest.mark.parametrize("name", ["manifest.json", "scorer.onnx"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    """A bundle without one of its files doesn't open."""
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=2), "format_version 2; this reader knows 1"),
        (lambda m: m.pop("latent_dim"), "latent_dim: Field required"),
        (lambda m: m.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda m: m["files"].update({"../../etc/passwd": m["files"]["noise.npy"]}), "files: ../../etc/passwd"),
        (lambda m: m["files"].pop("noise.npy"), "expected calibration.npy"),
        (lambda m: m["feature_baseline"].pop(), "6 entries; the signature has 7 features"),
        (lambda m: m["signature"].update(inputs=[]), "signature: .*expected one that has them all"),
        (lambda m: m["signature"]["inputs"][0].update(shape=[-1, 8]), "signature: .*expected one that has them all"),
        (lambda m: m.update(latent_dim=-1), "latent_dim: Input should be greater than or equal to 1"),
        (lambda m: m.update(name="../up"), "name: String should match pattern"),
        (lambda m: m.update(latent_dim="3"), "latent_dim: Input should be a valid integer"),
        (lambda m: m.update(best_member=1), "best_member: 1, counted from 0; there are 1 members"),
        (lambda m: m.update(exemplars=0), "exemplars: 0 with the prior exemplars; expected some for exemplars alone"),
        (lambda m: m.update(prior="standard_normal"), "exemplars: 360 with the prior standard_normal"),
        (lambda m: m["operators"].pop("decoder"), "operators: of encoder, scorer; expected of encoder, decoder, sc"),
        (lambda m: m["operators"]["scorer"].update(Gemm=0), "operators.scorer.Gemm: Input should be greater"),
        (lambda m: m.update(num_samples=0), "num_samples: Input should be greater than or equal to 1"),
        (lambda m: m.update(false_positive_rate=0.008), "0.008; 120 calibration rows support 0.00826 or more"),
        (lambda m: m.update(false_positive_rate=5e-324), "false_positive_rate: Input should be greater"),
        (lambda m: m["calibration"].update(rows=0), "calibration.rows: Input should be greater than or equal to 1"),
        (lambda m: m["calibration"]["quantiles"].pop("iwae"), "quantiles of 1 bounds; expected elbo and iwae"),
        (lambda m: m["calibration"]["quantiles"]["elbo"].update({"0.5": 1e9}), "quantiles of elbo: .* ascending"),
        (lambda m: m["calibration"]["quantiles"]["elbo"].update({"half": 0}), "quantiles.elbo.half.*: String should"),
        (lambda m: m["parity"]["errors"].update({"scorer/kl": 1}), "scorer/kl is off by 1; the tolerance is 0.0001"),
        (lambda m: m["parity"].update(errors={}), "parity.errors: Dictionary should have at least 1 item"),
        (lambda m: m["signature"].update(surprise=1), "signature.surprise: Unexpected keyword argument"),
        (lambda m: m["signature"]["columns"][1].update(name="c0"), "signature: columns of the same name"),
        (
            lambda m: m.update(signature={"inputs": [{"name": "z", "dtype": "STRING", "shape": [0, 9, 9, 9]}]}),
            "signature: TensorSpec.* without columns; expected an image",
        ),
        (
            lambda m: m.update(
                signature={"inputs": [{"name": "image", "dtype": "UINT8", "shape": [-1, 10**9, 10**9, 10**9]}]}
            ),
            "feature_baseline: 7 entries; the signature has 1000000000000000000000000000 features",
        ),
        (lambda m: m.update(created="2026-01-01T00:00:00"), "created: Input should have timezone info"),
        (lambda m: m.update(format_version="9" * 10**6), r"format_version '9+\.\.\.; this reader knows 1"),
    ],
)
def test_a_hostile_manifest_is_refused(bundle: Path, change: Callable[[Any], object], message: str) -> None:
    """A manifest that says what can't be is refused with the field's name."""
    change_manifest(bundle, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_no_manifest_is_refused(bundle: Path, content: bytes) -> None:
    """Any other bytes in manifest.json are refused with the file's name."""
    (bundle / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(bundle)


def test_arrays_of_another_shape_are_refused(bundle: Path) -> None:
    """Noise for another latent size is refused even under a right hash."""
    np.save(bundle / "noise.npy", np.zeros((256, 4), np.float32))
    change_file(bundle, "noise.npy", (bundle / "noise.npy").read_bytes())
    with pytest.raises(BundleError, match=r"noise.npy: float32 of shape \[256, 4\]; expected finite float32"):
        _ = Bundle.open(bundle).noise


def test_pickles_are_never_read(bundle: Path) -> None:
    """An array of objects, which would have to be unpickled, is refused."""
    np.save(bundle / "noise.npy", np.array([{}], dtype=object), allow_pickle=True)
    change_file(bundle, "noise.npy", (bundle / "noise.npy").read_bytes())
    with pytest.raises(BundleError, match="not a NumPy array"):
        _ = Bundle.open(bundle).noise


def test_a_link_out_of_the_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    """A file that is a link to one elsewhere isn't read, were it of the right size and hash."""
    for name in ("manifest.json", "scorer.onnx"):
        elsewhere = tmp_path / name
        (bundle / name).rename(elsewhere)
        (bundle / name).symlink_to(elsewhere)
        with pytest.raises(BundleError, match=f"{name}: a link to {elsewhere}; expected a file of the bundle's folder"):
            Bundle.open(bundle)
        (bundle / name).unlink()
        elsewhere.rename(bundle / name)


def test_links_as_kubernetes_mounts_them_are_followed(bundle: Path, tmp_path: Path) -> None:
    """Files may be links within the folder, by way of a linked folder, and the bundle's folder may be a link itself."""
    (bundle / "..2026").mkdir()
    (bundle / "..data").symlink_to("..2026")
    for path in [path for path in bundle.iterdir() if path.is_file()]:
        path.rename(bundle / "..2026" / path.name)
        path.symlink_to(f"..data/{path.name}")
    (tmp_path / "link").symlink_to(bundle)
    for path in (bundle, tmp_path / "link"):
        opened = Bundle.open(path)
        assert all(opened.read(name) for name in opened.manifest.files)


@pytest.mark.parametrize("name", ["manifest.json", "noise.npy"])
def test_what_is_no_regular_file_is_refused_at_once(bundle: Path, name: str) -> None:
    """A pipe, which nobody writes to, a folder and a link to itself are refused, and waited for by nobody."""
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match=f"{name}: p.*; expected a regular file"):
        Bundle.open(bundle)
    (bundle / name).unlink()
    (bundle / name).mkdir()
    with pytest.raises(BundleError, match=f"{name}: d.*; expected a regular file"):
        Bundle.open(bundle)
    (bundle / name).rmdir()
    (bundle / name).symlink_to(name)
    with pytest.raises(BundleError, match=f"{name}: "):
        Bundle.open(bundle)


def test_a_file_that_grew_is_not_read_to_its_end(bundle: Path) -> None:
    """No more of a file is read than the manifest says, should it have grown since the bundle was opened."""
    opened = Bundle.open(bundle)
    with (bundle / "noise.npy").open("ab") as file:
        file.truncate(2**28)  # which takes no room on disk
    with pytest.raises(BundleError, match=f"noise.npy: more than {opened.manifest.files['noise.npy'].bytes} bytes"):
        opened.read("noise.npy")
    with (bundle / "manifest.json").open("ab") as file:
        file.truncate(2**28)
    with pytest.raises(BundleError, match="manifest.json: more than 67108864 bytes"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs__numeric": None}, "golden.npz: inputs/inputs: none; the model takes numeric"),
        ({"inputs__numeric": np.zeros((8, 6), np.float32)}, "golden.npz: inputs/numeric: 6 columns, the model takes 7"),
        (
            {"inputs__numeric": np.zeros((8, 7))},
            "golden.npz: .*float64.*; expected one row or more, of the signature's",
        ),
        ({"inputs__numeric": np.zeros((0, 7), np.float32)}, "golden.npz: .*; expected one row or more"),
        ({"inputs__numeric": np.full((8, 7), "x")}, "golden.npz: inputs/numeric: strings; the model takes FLOAT32"),
        ({"inputs__more": np.zeros((8, 7), np.float32)}, "golden.npz: inputs/inputs: more, numeric; the model takes"),
        ({"latents": None}, "golden.npz: latents: float32 of shape [0]; expected float32 of shape [n, 3]"),
        (
            {"latents": np.zeros((8, 4), np.float32)},
            "latents: float32 of shape [8, 4]; expected float32 of shape [n, 3]",
        ),
        ({"latents": np.zeros((0, 3), np.float32)}, "latents: float32 of shape [0, 3]"),
        ({"decoder__numeric": None}, "decoder.onnx: numeric of the golden rows is off by inf"),
        ({"decoder__numeric": np.full((8, 7), "x")}, "decoder.onnx: numeric of the golden rows is off by inf"),
        ({"decoder__numeric": np.zeros((2, 7))}, "decoder.onnx: numeric of the golden rows is off by inf"),
        ({"scorer__elbo": np.zeros(())}, "scorer.onnx: elbo of the golden rows is off by inf"),
    ],
)
def test_golden_rows_that_do_not_fit_are_refused(bundle: Path, arrays: dict[str, Any], message: str) -> None:
    """Golden rows that are no rows of the model, or have no outputs to compare with, are a bundle's fault."""
    change_golden(bundle, **arrays)
    with pytest.raises(BundleError, match=message.replace("[", r"\[")):
        Runtime.load(Bundle.open(bundle))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "table3",
            ["encoder"],
            "encoder.onnx: input numeric is FLOAT32 of shape [-1, 3]; expected FLOAT32 of shape [-1, 7]",
        ),
        ("mixed", ["encoder"], "encoder.onnx: input numeric is FLOAT32 of shape [-1, 6]; expected"),
        ("image", ["scorer"], "scorer.onnx: input numeric is missing; expected FLOAT32 of shape [-1, 7]"),
        ("table3", ["decoder"], "decoder.onnx: input z is FLOAT32 of shape [-1, 2]; expected FLOAT32 of shape [-1, 3]"),
        ("grey", ["decoder"], "decoder.onnx: output image is UINT8 of shape [-1, 1, 7, 3]; expected a parameter"),
    ],
)
def test_graphs_of_another_model_are_refused(
    models: Any, bundle: Path, kind: str, changes: list[str], message: str
) -> None:
    """Graphs that take or give other than what the manifest says are refused by graph and value."""
    for name in changes:
        change_file(bundle, f"{name}.onnx", models.bundles[kind].graph(name))
    with pytest.raises(BundleError, match=message.replace("[", r"\[")):
        Runtime.load(Bundle.open(bundle))


def refusal(load: Callable[[], object]) -> str:
    """Return what is said where a bundle is refused, or nothing."""
    try:
        load()
    except BundleError as error:
        return str(error)
    return ""


Json = Any
HOSTILE: st.SearchStrategy[Json] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from(
        [-1, 0, 2**31, 2**63, 2**64, 10**300, -(10**300), 1e308, -0.0, math.inf, math.nan, "1e999", "../.."]
    ),
    st.sampled_from([[], {}, "", "x" * 10**5, "\0", "\ud800", "9" * 5000, [[]], {"": None}, [-1, -1, -1, -1]]),
    st.integers(1, 2000).map(lambda depth: ["deep", depth]),
)


def places(tree: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the ways to every value of a tree of JSON."""
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def put(tree: Json, path: tuple[str | int, ...], value: Json) -> None:
    """Put a value at a place of a tree, or take what is there away."""
    *way, last = path
    for key in way:
        tree = tree[key]
    if value == "remove":
        del tree[last]
    elif value == "add" and isinstance(tree, dict):
        tree["unheard of"] = tree[last]
    else:
        tree[last] = value


def as_text(tree: Json) -> bytes:
    """Return a tree as JSON; a list ["deep", n] as n lists within each other, and the text 1e999 as a number."""
    text = json.dumps(tree)
    for depth in range(2001):
        if f'["deep", {depth}]' in text:
            text = text.replace(f'["deep", {depth}]', "[" * depth + "]" * depth)
    return text.replace('"1e999"', "1e999").encode()


def test_any_manifest_opens_or_is_refused_by_name(models: Any, tmp_path: Path) -> None:
    """Whatever is done to a manifest, it is refused by name, or opens and is what the published schema says."""
    bundle = Path(shutil.copytree(models.bundles["mixed"].path, tmp_path / "1"))
    whole = json.loads((bundle / "manifest.json").read_text())
    schema = json.loads(SCHEMA.read_text())
    ways = list(places(whole))

    @settings(max_examples=400, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        tree = copy.deepcopy(whole)
        for _ in range(data.draw(st.integers(0, 2))):
            way = data.draw(st.sampled_from(ways))
            try:
                put(tree, way, data.draw(HOSTILE | st.sampled_from(["remove", "add"])))
            except (KeyError, IndexError, TypeError):
                continue  # the first change took this place away
        raw = bytearray(as_text(tree))
        match data.draw(st.sampled_from(["", "", "", "cut", "byte", "twice"])):
            case "cut":
                raw = raw[: data.draw(st.integers(0, len(raw)))]
            case "byte":
                raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
            case "twice":
                raw[1:1] = b'"latent_dim": 7, '
        (bundle / "manifest.json").write_bytes(raw)
        opened: list[Bundle] = []
        if refused := refusal(lambda: opened.append(Bundle.open(bundle))):
            assert str(bundle) in refused
            assert len(refused) < 2000
            return
        jsonschema.validate(json.loads(raw), schema)
        refused = refusal(lambda: (Runtime.load(*opened), opened[0].calibration))
        assert not refused or str(bundle) in refused

    check()


# Changes bytes of files, in a process of its own, for ONNX Runtime's parser is native and might take it down.
CHANGED_BYTES = """
import json, random, sys
from pathlib import Path
from vaeserve.bundle import Bundle
from vaeserve.manifest import entries
from vaeserve.errors import BundleError
from vaeserve_service.runtime import Runtime

source, folder = Bundle.open(sys.argv[1]), Path(sys.argv[2])
files = {name: source.read(name) for name in source.manifest.files}
loaded = refused = 0
for seed in range(int(sys.argv[3])):
    print("seed", seed, file=sys.stderr, flush=True)
    generator = random.Random(seed)
    name = generator.choice(sorted(files))
    content = bytearray(files[name])
    for _ in range(generator.choice([1, 1, 2, 8])):
        position = generator.randrange(len(content))
        if generator.random() < 0.7:
            content[position] ^= 1 << generator.randrange(8)
        else:
            del content[position : position + generator.randrange(1, 9)]
    changed = {**files, name: bytes(content)}
    for path, written in changed.items():
        (folder / path).write_bytes(written)
    manifest = json.loads(source.manifest_json)
    manifest["files"] = {path: entry.model_dump() for path, entry in entries(changed).items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    try:
        bundle = Bundle.open(folder)
        Runtime.load(bundle), bundle.calibration
        loaded += 1
    except BundleError as error:
        assert str(folder) in str(error), error
        refused += 1
print(json.dumps({"loaded": loaded, "refused": refused}))
"""


@pytest.mark.parametrize("kind", ["table7", pytest.param("mixed", marks=pytest.mark.slow)])
def test_any_bytes_under_right_hashes_load_or_are_refused(models: Any, tmp_path: Path, kind: str) -> None:
    """Files changed by whoever can mend their hashes load and pass their golden rows, or are refused: nothing else."""
    command = [sys.executable, "-c", CHANGED_BYTES, str(models.bundles[kind].path), str(tmp_path), "150"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    assert counts["loaded"] > 5
    assert counts["refused"] > 50


def contents(bundle: Path) -> tuple[dict[str, bytes], Manifest]:
    """Return what `write` takes to write a bundle again."""
    opened = Bundle.open(bundle)
    return {name: opened.read(name) for name in opened.manifest.files}, opened.manifest


def test_a_version_is_never_overwritten(bundle: Path) -> None:
    """Writing where a version is changes nothing."""
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(OperatorError, match="a version never changes"):
        write(bundle, *contents(bundle))
    assert (bundle / "manifest.json").read_bytes() == before


def test_nothing_half_written_where_nothing_can_be(bundle: Path, tmp_path: Path) -> None:
    """A target that can't be written is an error of the operator's, and leaves nothing."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OperatorError, match="nothing was written"):
        write(tmp_path / "file" / "1", *contents(bundle))


# Kills itself at the n-th event of the file system, for n = 1, 2, ... until the write is done; prints how many.
KILLED_WRITERS = """
import itertools, os, signal, sys
from pathlib import Path
from vaeserve import bundle

EVENTS = ("open", "os.", "shutil.", "tempfile.", "fcntl.")
left = None

def count(event, *_):
    global left
    if left is not None and event.startswith(EVENTS):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def counted(name, function):
    def call(*arguments):
        count("os." + name)
        return function(*arguments)
    return call

os.fsync, os.write = counted("fsync", os.fsync), counted("write", os.write)  # which are no audit events
sys.addaudithook(count)
opened = bundle.Bundle.open(sys.argv[1])
files = {name: opened.read(name) for name in opened.manifest.files}
for n in itertools.count(1):
    writer = os.fork()
    if not writer:
        left = n
        bundle.write(Path(sys.argv[2]) / str(n) / "table7" / "1", files, opened.manifest)
        os._exit(0)
    if os.waitpid(writer, 0)[1] == 0:
        print(n)
        break
"""


def test_a_writer_killed_at_any_step_leaves_no_version_or_a_whole_one(bundle: Path, tmp_path: Path) -> None:
    """Killed at any step, a writer leaves no version or a whole one, and the next one finds nothing in its way."""
    command = [sys.executable, "-c", KILLED_WRITERS, str(bundle), str(tmp_path)]
    steps = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    files, manifest = contents(bundle)
    states, abandoned = [], 0
    for step in range(1, steps):
        repository = tmp_path / str(step)
        states.append(versions(repository, "table7"))
        if states[-1]:
            left = Bundle.open(repository / "table7" / "1")
            assert {name: left.read(name) for name in left.manifest.files} == files
        abandoned += len(list(repository.rglob("*.partial")))
        write(repository / "table7" / str(len(states[-1]) + 1), files, manifest)
        if not states[-1]:
            assert [path.name for path in (repository / "table7").iterdir()] == ["1"]
    assert steps > 25
    assert states == sorted(states)  # none before some step, the version from then on
    assert (states[0], states[-1]) == ([], [1])
    assert abandoned > 15


class Raced(Mapping[str, bytes]):
    """Files between whose reading and writing another writer writes."""

    def __init__(self, files: dict[str, bytes], rival: Callable[[], object]) -> None:
        self._files, self._rival = files, rival

    def __getitem__(self, name: str) -> bytes:
        return self._files[name]

    def __iter__(self) -> Iterator[str]:
        self._rival()
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def test_a_writer_that_comes_second_overwrites_nothing(bundle: Path) -> None:
    """Of two writers of one version, the one that is done first wins whole, and the other changes nothing."""
    files, manifest = contents(bundle)
    target = bundle.parent / "2"
    with pytest.raises(OperatorError, match="a version never changes"):
        write(target, Raced(files, lambda: write(target, files, manifest)), manifest)
    opened = Bundle.open(target)
    assert {name: opened.read(name) for name in files} == files
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["1", "2"]


def test_of_many_writers_at_once_one_wins(bundle: Path) -> None:
    """Writers of one version, all at the same time: one wins whole, and every other is told that it exists."""
    files, manifest = contents(bundle)
    start = threading.Barrier(8)

    def attempt(number: int) -> int | None:
        mine = manifest.model_copy(update={"density": f"writer {number}"})
        start.wait()
        try:
            write(bundle.parent / "2", files, mine)
        except OperatorError:
            return None
        return number

    with ThreadPoolExecutor(8) as threads:
        (winner,) = (number for number in threads.map(attempt, range(8)) if number is not None)
    assert Bundle.open(bundle.parent / "2").manifest.density == f"writer {winner}"
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["1", "2"]


def test_the_folder_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    """What a killed writer left is removed by the next one in its place; what a living one is at work on is not."""
    for name in (".run.dead.partial", ".run.dead.abandoned", ".other.dead.partial"):
        (tmp_path / name).mkdir()
    seen: list[list[str]] = []

    def rival() -> None:
        write_folder(tmp_path / "run", {"file": b"the rival's"})
        seen.append([path.name for path in tmp_path.iterdir() if path.name.startswith(".run.")])

    with pytest.raises(OSError, match="not empty"):
        write_folder(tmp_path / "run", Raced({"file": b"ours"}, rival))
    assert [len(partials) for partials in seen] == [1]
    assert (tmp_path / "run" / "file").read_bytes() == b"the rival's"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.dead.partial", "run"]


def test_writers_of_the_next_version_each_have_their_own(bundle: Path) -> None:
    """Many that write at once, none naming a version, write one each, past whatever folder is there."""
    (bundle.parent / "4").mkdir()
    files, manifest = contents(bundle)
    with ThreadPoolExecutor(6) as threads:
        written = list(threads.map(lambda _: write_version(bundle.parent, None, files, manifest), range(6)))
    assert sorted(int(each.version) for each in written) == [5, 6, 7, 8, 9, 10]
    assert versions(bundle.parent.parent, "table7") == [1, 5, 6, 7, 8, 9, 10]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """What the system says of a folder is the operator's to mend, and no traceback."""
    with pytest.raises(OperatorError, match="name too long; expected a folder that can be read"):
        versions(tmp_path, "a" * 300)


def test_the_version_of_a_link_is_that_of_what_it_links_to(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`latest -> 1` is version 1, and so is the folder one stands in."""
    (bundle.parent / "latest").symlink_to("1")
    monkeypatch.chdir(bundle)
    assert [Bundle.open(path).version for path in (bundle.parent / "latest", Path())] == ["1", "1"]


def test_a_repository_lists_models_and_versions_alone(bundle: Path) -> None:
    """Only folders named like models and versions count; versions are in the order of their numbers."""
    repository = bundle.parent.parent
    for name in ("10", "2", "02", "0", "latest", ".3.partial"):
        shutil.copytree(bundle, bundle.parent / name)
    (bundle.parent / "99").mkdir()  # left over, and no bundle
    (repository / "empty").mkdir()
    (repository / ".hidden" / "1").mkdir(parents=True)
    assert list(models(repository)) == ["table7"]
    assert versions(repository, "table7") == [1, 2, 10]


SCHEMA = Path(__file__).parents[2] / "docs" / "manifest.schema.json"


def test_the_published_schema_describes_every_field() -> None:
    """docs/manifest.schema.json is a schema, and says of every field what it is."""
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for part in (schema, *schema["$defs"].values()):
        for name, field in part.get("properties", {}).items():
            assert field.get("description"), f"{part['title']}.{name}"
        assert part.get("additionalProperties") is not True


def test_the_published_schema_names_the_fields_of_every_manifest(models: Any) -> None:
    """A written manifest has every field that the schema has, and no other."""
    schema = json.loads(SCHEMA.read_text())
    for opened in models.bundles.values():
        manifest = json.loads((opened.path / "manifest.json").read_text())
        assert set(manifest) == set(schema["properties"]) == set(schema["required"])
