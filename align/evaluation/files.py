"""The files of suites: JSON Lines, gzipped or not, read as training rows are."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.data.faults import RowError
from align.data.files import JsonLines


def check_file(key: str, path: str) -> None:
    """Refuses what is no file of rows, naming the key; opens nothing."""
    if not Path(path).expanduser().is_file():
        raise UserError(f"{key}={path} does not exist: name a .jsonl or .jsonl.gz file.")


def read_rows(path: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Every row of a file, as `read_places` reads them."""
    return [row for _, row in read_places(path, columns)]


def read_places(path: str, columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Every row with its place for people, `questions.jsonl:3`; blank lines are passed over.

    Args:
        path: JSON Lines, gzipped or not.
        columns: that every row has to have.

    Raises:
        UserError: no such file, one that cannot be read, no JSON, or a row without a column; names the line.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise UserError(f"{path} does not exist: name a .jsonl or .jsonl.gz file.")
    rows = []
    for where, row in _rows(place):
        missing = [column for column in columns if column not in row]
        if missing:
            raise UserError(f"{where} has no `{missing[0]}`.")
        rows.append((where, row))
    if not rows:
        raise UserError(f"{path} holds no rows.")
    return rows


def _rows(place: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place for people, `questions.jsonl:3`."""
    if place.suffix != ".gz":
        yield from _lines(place)
        return
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / place.stem
        try:
            with gzip.open(place) as packed, unpacked.open("wb") as file:
                shutil.copyfileobj(packed, file)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{place} cannot be unpacked ({error}): is it a whole .gz file?") from error
        yield from _lines(unpacked)


def _lines(place: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    source = JsonLines(place)
    for _, where, row in source.read(0, source.count()):
        if isinstance(row, RowError):
            raise row
        yield where, row
