"""The sources of rows: kinds of file and data set, each read a few rows at a time, each row with its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from align.core.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet
    from datasets import Dataset

PARQUET_BATCH = 16  # rows decoded at once: long rows are megabytes


@dataclass(frozen=True)
class RawRow:
    """One row as it was read.

    Attributes:
        index: its place in the whole source, from 0; fixed whatever process reads it.
        source: for messages to people, 1-based: `train.jsonl:17` (line), `train.parquet:17` (row).
        values: column → value.
    """

    index: int
    source: str
    values: dict[str, Any]


class Source(Protocol):
    """A file or a data set that holds rows; small to pickle, so that any process can read its share."""

    def count(self) -> int:
        """Places for rows, blank lines included."""

    def read(self, start: int, stop: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """`(place, where, values)` of the rows at places start … stop − 1: `16, "train.jsonl:17", {"prompt": …}`."""

    def identity(self) -> list[Any]:
        """What changes when the rows change; plain JSON values."""


@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line; blank lines are skipped."""

    path: Path

    def count(self) -> int:
        """Lines of the file."""
        with self.path.open("rb") as file:
            return sum(1 for _ in file)

    def read(self, start: int, stop: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """See `Source.read`."""
        with self.path.open("rb") as file:
            for place, line in enumerate(islice(file, start, stop), start):
                if line.strip():
                    where = f"{self.path.name}:{place + 1}"
                    yield place, where, _as_object(_parse_json(line.rstrip(), self.path.name, place), where)

    def identity(self) -> list[Any]:
        """Path, size and time of change."""
        return _file_identity(self.path)


@dataclass(frozen=True)
class JsonList:
    """One JSON list of objects."""

    path: Path

    def _rows(self) -> list[Any]:
        rows = _parse_json(self.path.read_bytes(), self.path.name, 0)
        if not isinstance(rows, list):
            raise UserError(
                f"{self.path.name}: a .json file must hold a list of rows, not one {_kind(rows)}."
            )
        return rows

    def count(self) -> int:
        """Entries of the list."""
        return len(self._rows())

    def read(self, start: int, stop: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """See `Source.read`."""
        for place, row in enumerate(self._rows()[start:stop], start):
            where = f"{self.path.name}:{place + 1}"
            yield place, where, _as_object(row, where)

    def identity(self) -> list[Any]:
        """Path, size and time of change."""
        return _file_identity(self.path)


@dataclass(frozen=True)
class Parquet:
    """A Parquet file, decoded a few rows at a time."""

    path: Path

    def _open(self) -> pyarrow.parquet.ParquetFile:
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self.path)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise UserError(f"{self.path.name} cannot be read as Parquet: {error}.") from error

    def count(self) -> int:
        """Rows of the file."""
        return self._open().metadata.num_rows

    def read(self, start: int, stop: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """See `Source.read`."""
        file = self._open()
        place = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if place + rows <= start or place >= stop:
                place += rows
                continue
            for batch in file.iter_batches(batch_size=PARQUET_BATCH, row_groups=[group]):
                for offset, values in enumerate(batch.to_pylist()):
                    if start <= place + offset < stop:
                        yield place + offset, f"{self.path.name}:{place + offset + 1}", values
                place += batch.num_rows

    def identity(self) -> list[Any]:
        """Path, size and time of change."""
        return _file_identity(self.path)


@dataclass(frozen=True)
class Saved:
    """A split of a `datasets` data set, from a folder or the Hub."""

    name: str
    dataset: Dataset

    def count(self) -> int:
        """Rows of the split."""
        return len(self.dataset)

    def read(self, start: int, stop: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """See `Source.read`."""
        for place in range(start, min(stop, len(self.dataset))):
            yield place, f"{self.name}:{place + 1}", self.dataset[place]

    def identity(self) -> list[Any]:
        """Name and the fingerprint that `datasets` keeps."""
        return [self.name, self.dataset._fingerprint, len(self.dataset)]


def _parse_json(text: bytes, name: str, line: int) -> Any:
    """`text`, which begins at the file's 0-based `line`, as JSON; complaints name the line."""
    try:
        return json.loads(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{name}:{line + error.lineno}: malformed JSON ({error.msg} at column {error.colno})."
        ) from error
    except UnicodeDecodeError as error:
        at = line + 1 + text[: error.start].count(b"\n")
        raise UserError(f"{name}:{at}: not UTF-8 text (byte {text[error.start]:#04x}).") from error


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: a row must be an object with named columns, not a {_kind(value)}.")
    return value


def _kind(value: Any) -> str:
    """A JSON value's kind, for messages."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _file_identity(path: Path) -> list[Any]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
