"""The bundle on disk: whole, or refused by name."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaeserve.bundle import Bundle, Manifest, entries, models, versions, write
from vaeserve.errors import BundleError, OperatorError
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
    entry = entries({"noise.npy": (bundle / "noise.npy").read_bytes()})["noise.npy"]
    change_manifest(bundle, lambda m: m["files"].update({"noise.npy": entry.model_dump()}))
    with pytest.raises(BundleError, match=r"noise.npy: float32 of shape \[256, 4\]; expected finite float32"):
        _ = Bundle.open(bundle).noise


def test_pickles_are_never_read(bundle: Path) -> None:
    """An array of objects, which would have to be unpickled, is refused."""
    np.save(bundle / "noise.npy", np.array([{}], dtype=object), allow_pickle=True)
    entry = entries({"noise.npy": (bundle / "noise.npy").read_bytes()})["noise.npy"]
    change_manifest(bundle, lambda m: m["files"].update({"noise.npy": entry.model_dump()}))
    with pytest.raises(BundleError, match="not a NumPy array"):
        _ = Bundle.open(bundle).noise


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


def test_a_writer_killed_half_way_leaves_no_version(bundle: Path, tmp_path: Path) -> None:
    """A process killed while it writes leaves no version, and the next writer is not hindered."""
    target = tmp_path / "models" / "table7" / "2"
    # Kills itself at the fourth file: while the folder is half full.
    script = f"""
import os, signal
from pathlib import Path
from vaeserve import bundle
whole, count = os.fsync, 0
def fsync(descriptor):
    global count
    count += 1
    if count == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(descriptor)
os.fsync = fsync
opened = bundle.Bundle.open(Path({str(bundle)!r}))
files = {{name: opened.read(name) for name in opened.manifest.files}}
bundle.write(Path({str(target)!r}), files, opened.manifest)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path for path in target.parent.iterdir() if path.name.endswith(".partial")]
    assert versions(tmp_path / "models", "table7") == [1]
    write(target, *contents(bundle))
    assert versions(tmp_path / "models", "table7") == [1, 2]


def test_a_repository_lists_models_and_versions_alone(bundle: Path) -> None:
    """Only folders named like models and versions count; versions are in the order of their numbers."""
    repository = bundle.parent.parent
    for name in ("10", "2", "02", "0", "latest", ".3.partial"):
        (bundle.parent / name).mkdir()
    (repository / "empty").mkdir()
    (repository / ".hidden" / "1").mkdir(parents=True)
    assert list(models(repository)) == ["table7"]
    assert versions(repository, "table7") == [1, 2, 10]


def test_the_published_schema_describes_every_manifest(models: Any) -> None:
    """docs/manifest.schema.json names every field that a written manifest has, and no other."""
    schema = json.loads((Path(__file__).parents[2] / "docs" / "manifest.schema.json").read_text())
    for opened in models.bundles.values():
        manifest = json.loads((opened.path / "manifest.json").read_text())
        assert set(manifest) == set(schema["properties"]) == set(schema["required"])
