"""The files of suites: JSON Lines, gzipped or not, read as training rows are."""

from __future__ import annotations

import gzip
import reprlib
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.data.faults import NOT_TEXT, RowError
from align.data.files import JsonLines


def check_file(key: str, path: str) -> None:
    """Refuses what is no file of rows, naming the key; opens nothing."""
    if not Path(path).expanduser().is_file():
        raise UserError(f"{key}={path} does not exist: name a .jsonl or .jsonl.gz file.")


def read_rows(
    path: str, columns: Sequence[str], *, check: Callable[[str, Mapping[str, Any]], None] | None = None
) -> list[dict[str, Any]]:
    """Every row of a file, as `read_places` reads them.

    Args:
        path, columns: as there.
        check: raises UserError for a row that cannot be used, given its place and the row.
    """
    rows = read_places(path, columns)
    for where, row in rows:
        if check is not None:
            check(where, row)
    return [row for _, row in rows]


def read_places(path: str, columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Every row with its place for people, `questions.jsonl:3`; blank lines are passed over.

    Args:
        path: JSON Lines, gzipped or not.
        columns: that every row has to have.

    Raises:
        UserError: no such file, one that cannot be read, no JSON, or a row without a column, or with what is no text;
            names the line.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise UserError(f"{path} does not exist: name a .jsonl or .jsonl.gz file.")
    rows = []
    for where, row in _rows(place):
        missing = [column for column in columns if column not in row]
        if missing:
            raise UserError(f"{where} has no `{missing[0]}`.")
        _check_texts(where, row)
        rows.append((where, row))
    if not rows:
        raise UserError(f"{path} holds no rows.")
    return rows


def _check_texts(where: str, row: Mapping[str, Any]) -> None:
    """Refuses half of a surrogate pair, which JSON can spell, and which can neither be asked nor written down."""
    pending: list[Any] = [row]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            pending += [*value, *value.values()]
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                place = f"character {error.start + 1} of {reprlib.repr(value)}"
                raise RowError(
                    where, f"{place} is half of a surrogate pair: remove it.", reason=NOT_TEXT
                ) from error


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
