"""Files where they lie: on this machine by their path, or in an object store by their URL."""

import os
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.fs

from vaeserve.errors import DataError, MissingExtraError, first_line

# What is read as one stream of another: nobody can begin in its midst.
COMPRESSED = (".gz", ".bz2", ".zst")


@dataclass(frozen=True)
class File:
    """A file, as a person names it and as its file system does; modified_ns is None where that doesn't say."""

    name: str
    size: int
    modified_ns: int | None
    path: str = field(repr=False)
    system: pa.fs.FileSystem = field(repr=False, compare=False)

    @property
    def suffix(self) -> str:
        """What its format goes by: the name's last part, without a compression's."""
        name = PurePosixPath(self.path.lower())
        return PurePosixPath(name.stem).suffix if self.compressed else name.suffix

    @property
    def compressed(self) -> bool:
        """Whether it is to be unpacked as it is read."""
        return self.path.lower().endswith(COMPRESSED)

    def has_changed(self) -> bool:
        """Tell whether it is another than when it was found, by its size and time; raises OSError."""
        info = self.system.get_file_info(self.path)
        return (info.size, info.mtime_ns) != (self.size, self.modified_ns)

    def open(self) -> pa.NativeFile:
        """Open it to be read anywhere."""
        return self.system.open_input_file(self.path)

    def stream(self, start: int = 0, stop: int | None = None) -> pa.NativeFile:
        """Open it to be read from its beginning, unpacked, or some of its bytes as they are."""
        if start == 0 and stop in (None, self.size):
            return self.system.open_input_stream(self.path)
        return self.open().get_stream(start, (self.size if stop is None else stop) - start)


def is_url(name: str) -> bool:
    """Tell whether a name is a URL."""
    return "://" in name


def locate(name: str) -> tuple[pa.fs.FileSystem, str]:
    """Return the file system of a path or URL, and the path there.

    URLs are pyarrow's own (`s3`, `gs`, `abfs`, `hdfs`, `file`) or fsspec's, by the packages that are installed. Raises
    DataError for a URL of neither.
    """
    if not is_url(name):
        return pa.fs.LocalFileSystem(), os.path.abspath(name)  # noqa: PTH100 - which resolves no links
    try:
        system, path = pa.fs.FileSystem.from_uri(name)
    except pa.ArrowInvalid:
        return _by_fsspec(name)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: {first_line(error)}") from None
    return system, path


def _by_fsspec(name: str) -> tuple[pa.fs.FileSystem, str]:
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError:
        raise MissingExtraError(f"{name}: such a URL takes fsspec: pip install fsspec") from None
    try:
        system, path = url_to_fs(name)
    except (ImportError, ValueError) as error:
        raise DataError(f"{name}: {first_line(error)}") from None
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(system)), path


def files_at(name: str) -> list[File] | None:
    """Return the file of a path or URL, or those below a folder in the order of their paths; None if nothing is there.

    What is hidden, or begins with `_` as marks of other programs do, is left out. Raises as the file system does.
    """
    system, path = locate(name)
    info = system.get_file_info(path)
    if info.type == pa.fs.FileType.NotFound:
        return None
    if info.is_file:
        return [_file(info, name, system)]
    found = system.get_file_info(pa.fs.FileSelector(path, recursive=True))
    below = {_below(one.path, path): one for one in found if one.is_file}
    shown = sorted(part for part in below if _is_shown(part))
    return [_file(below[part], f"{name.rstrip('/')}/{part}", system) for part in shown]


def would_read(folder: str, name: str) -> bool:
    """Tell whether `files_at` of a folder has, or would have, what lies at another path or URL."""
    (system, whole), (other, path) = locate(folder), locate(name)
    inside = path.startswith(f"{whole.rstrip('/')}/")
    return inside and system.equals(other) and _is_shown(_below(path, whole))


def _is_shown(part: str) -> bool:
    return not any(name.startswith(("_", ".")) for name in part.split("/"))


def _below(path: str, folder: str) -> str:
    return path.lstrip("/").removeprefix(folder.strip("/")).lstrip("/")


def _file(info: pa.fs.FileInfo, name: str, system: pa.fs.FileSystem) -> File:
    return File(name, info.size, info.mtime_ns, info.path, system)
