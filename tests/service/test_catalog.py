"""What is found on disk, and what tells that it has changed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vaeserve_service import catalog


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder with a version 3."""
    folder = tmp_path / "fraud"
    (folder / "3").mkdir(parents=True)
    (folder / "3" / "manifest.json").write_text("{}")
    (folder / "3" / "noise.npy").write_text("points")
    return folder


def test_versions_are_numbered_folders_with_a_manifest(model: Path) -> None:
    """Other folders, numbers without a manifest, and names that no model has are nothing."""
    for other in (".4.partial", "latest", "05", "6", "0"):
        (model / other).mkdir()
        if other != "6":
            (model / other / "manifest.json").write_text("{}")
    (model / "7").write_text("no folder")
    assert set(catalog.versions(model.parent, "fraud")) == {3}
    assert catalog.versions(model.parent, "other") == {}
    assert catalog.versions(model, "../fraud") == {}
    (model.parent / ".hidden").mkdir()
    assert catalog.names(model.parent) == ["fraud"]


def _replace(noise: Path) -> None:
    """Put another file of the same size and time in the place of one."""
    other, time = noise.with_name("other"), noise.stat().st_mtime_ns
    other.write_text("POINTS")
    os.utime(other, ns=(time, time))
    other.replace(noise)


@pytest.mark.parametrize(
    "change",
    [
        lambda noise: noise.write_text("more points"),
        lambda noise: os.utime(noise, ns=(0, 0)),
        _replace,
        lambda noise: noise.chmod(0o600),
        lambda noise: noise.with_name("more").write_text(""),
        lambda noise: noise.unlink(),
    ],
    ids=["size", "time", "inode", "mode", "added", "removed"],
)
def test_a_fingerprint_changes_with_the_files(model: Path, change: Callable[[Path], None]) -> None:
    """Whatever a writer does to the files is told; that they are read isn't."""
    noise = model / "3" / "noise.npy"
    before = catalog.versions(model.parent, "fraud")
    noise.read_text()
    assert catalog.versions(model.parent, "fraud") == before
    change(noise)
    assert catalog.versions(model.parent, "fraud") != before


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_version_that_cannot_be_read_is_one_all_the_same(model: Path) -> None:
    """Its load tells why, and is tried again when it can be read."""
    (model / "3").chmod(0)
    closed = catalog.versions(model.parent, "fraud")
    assert closed == {3: "Permission denied"}
    (model / "3").chmod(0o700)
    assert catalog.versions(model.parent, "fraud") != closed
