"""Files of rows, compressed or not: how they are opened, named and told apart."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from align.core.errors import UserError


@dataclass(frozen=True)
class RowFile:
    """A file that holds rows.

    Attributes:
        path: where it is.
        name: what messages and places of rows call it, by itself its name without folders.
    """

    path: Path
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.path.name)

    def size(self) -> int:
        """See `Source.size`."""
        return self.path.stat().st_size

    def identity(self) -> list[Any]:
        """Name, path, size and time of change."""
        return [self.name, *file_identity(self.path)]


def opened(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed where its name ends in .gz.

    Raises:
        UserError: while it is read, where it is no whole gzip file.
    """
    return _Unpacked(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


class _Unpacked(gzip.GzipFile):
    """A gzip file that says in one sentence that it is none, or was cut short."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self._path = path

    def readline(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        """One line."""
        try:
            return super().readline(size)
        except (OSError, EOFError, zlib.error) as error:
            raise self._damaged(error) from error

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        """The rest."""
        try:
            return super().read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise self._damaged(error) from error

    def read1(self, size: int = -1) -> bytes:
        """What is at hand; a reader of text asks for it."""
        try:
            return super().read1(size)
        except (OSError, EOFError, zlib.error) as error:
            raise self._damaged(error) from error

    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def _damaged(self, error: BaseException) -> UserError:
        return UserError(f"{self._path.name} is no whole gzip file ({str(error).rstrip('.')}).")


def file_identity(path: Path) -> list[Any]:
    """What changes when the file does."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
