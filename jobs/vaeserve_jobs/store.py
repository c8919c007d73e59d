"""The folder that a job writes to, on this machine or in an object store: what is in it appears whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from vaeserve.atomic import new_file, remove_partial_files, write_once
from vaeserve.errors import ConfigError, first_line
from vaeserve.files import locate


class Store:
    """A folder by its path or URL.

    Files of this machine are written beside their place, flushed and renamed. An object store has no rename, but an
    object appears as its last byte has come: files are written here, and sent whole.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._system, self._path = locate(name)
        self._local = Path(self._path) if isinstance(self._system, pa.fs.LocalFileSystem) else None

    def make(self) -> None:
        """Make the folder unless it is there; raises ConfigError where it can't be made."""
        with self.writing():
            self._system.create_dir(self._path)

    def names(self) -> list[str]:
        """Return the names of what is in the folder, but for files half-written; none where there is no folder.

        Raises ConfigError where there is a file in its place, and where it can't be read.
        """
        with self.writing():
            if self._system.get_file_info(self._path).is_file:
                raise ConfigError(f"--out {self.name}: is a file; expected a folder, new or empty")
            return self._names()

    def _names(self) -> list[str]:
        selector = pa.fs.FileSelector(self._path, allow_not_found=True)
        names = sorted(info.base_name for info in self._system.get_file_info(selector))
        return [name for name in names if not name.startswith(".")]

    def open(self, name: str) -> pa.NativeFile:
        """Open a file to read it; raises OSError."""
        return self._system.open_input_file(f"{self._path}/{name}")

    def read(self, name: str) -> bytes:
        """Return a file's bytes; raises ConfigError, naming it, where it can't be read."""
        with self.writing(), self.open(name) as file:
            content: bytes = file.read()
        return content

    @contextmanager
    def new(self, name: str) -> Iterator[Path]:
        """Yield a path of this machine to write a file at, which takes its place if all goes well.

        Raises ConfigError where it can't be written.
        """
        if self._local is not None:
            with self.writing(), new_file(self._local / name) as partial:
                yield partial
            return
        with tempfile.TemporaryDirectory() as folder:
            aside = Path(folder) / name
            yield aside
            with (
                self.writing(),
                aside.open("rb") as file,
                self._system.open_output_stream(f"{self._path}/{name}") as sent,
            ):
                shutil.copyfileobj(file, sent, 8 * 2**20)

    def put_once(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one, and tell whether it was written.

        An object store may take it of two writers at once: what they write must be the same.
        """
        with self.writing():
            if self._local is not None:
                return write_once(self._local / name, content)
            if self._system.get_file_info(f"{self._path}/{name}").is_file:
                return False
            with self._system.open_output_stream(f"{self._path}/{name}") as sent:
                sent.write(content)
        return True

    def sweep(self, names: str) -> None:
        """Remove what killed writers left of files whose names match a pattern; nobody may be writing them."""
        if self._local is not None:
            remove_partial_files(self._local, names)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raise ConfigError, naming the folder, where it can't be written to."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise ConfigError(f"--out {self.name}: {reason}; expected a folder to write to") from None
