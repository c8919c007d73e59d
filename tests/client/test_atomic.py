"""Files and folders that appear whole or not at all."""

import fcntl
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vaeserve.atomic import new_file, remove_partial_files, write_folder, write_once


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Have another umask for a while."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    """Return the permissions of a file or folder."""
    return path.stat().st_mode & 0o777


def write_file(target: Path, content: bytes = b"") -> None:
    """Write a file whole."""
    with new_file(target) as partial:
        partial.write_bytes(content)


@pytest.mark.parametrize(("mask", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600), (2, 0o775, 0o664)])
def test_modes_follow_the_umask(tmp_path: Path, mask: int, folder: int, file: int) -> None:
    """Whom the umask lets read a new file or folder can read these; whom it doesn't can't."""
    with umask(mask):
        write_folder(tmp_path / "folder", {"inside": b""})
        write_file(tmp_path / "file")
    assert mode(tmp_path / "folder") == folder
    assert mode(tmp_path / "folder" / "inside") == mode(tmp_path / "file") == file


def test_a_file_that_takes_anothers_place_has_its_mode(tmp_path: Path) -> None:
    """What was private stays private, and what a group may write stays so."""
    target = tmp_path / "file"
    for kept in (0o600, 0o664):
        target.write_bytes(b"old")
        target.chmod(kept)
        with umask(0o022):
            write_file(target, b"new")
        assert (target.read_bytes(), mode(target)) == (b"new", kept)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("holds", [True, False], ids=["which another holds", "which is gone"])
def test_a_folder_that_is_taken_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds: bool
) -> None:
    """Another writer that takes a folder which isn't locked yet for abandoned, and removes it, changes nothing."""
    real = fcntl.flock
    taken: list[Path] = []

    def flock(descriptor: int, operation: int) -> Any:
        if not taken:
            (partial,) = tmp_path.iterdir()
            taken.append(partial)
            partial.rmdir()
            if holds:
                raise BlockingIOError
        return real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    write_folder(tmp_path / "run", {"file": b"ours"})
    assert taken
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "file").read_bytes() == b"ours"


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_several_writers_at_once_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Exactly one of several is told that it wrote, its bytes are there whole, and nothing beside them."""
    ready = threading.Barrier(4 if links else 1)

    def refused(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refused)

    def write(number: int) -> bool:
        ready.wait(30)
        return write_once(tmp_path / "file", f"{number}".encode() * 1000)

    with ThreadPoolExecutor(4 if links else 1) as writers:
        wrote = list(writers.map(write, range(4)))
    assert sum(wrote) == 1
    assert (tmp_path / "file").read_bytes() == f"{wrote.index(True)}".encode() * 1000
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    """Half-written files whose names match are removed, and no others."""
    for name in (".part-1.0a.partial", ".plan.0a.partial", "part-1", ".part-2"):
        (tmp_path / name).write_bytes(b"")
    remove_partial_files(tmp_path, "part-*")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".part-2", ".plan.0a.partial", "part-1"]
