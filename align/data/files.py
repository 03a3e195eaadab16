"""The sources of rows: what a file or a data set that holds rows can do, and which kinds of file there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from align.core.errors import UserError
from align.data.json_files import JsonLines, JsonList, Values, holds_lines, holds_object
from align.data.json_objects import JsonObject
from align.data.plain_text import TextFile
from align.data.table_files import Csv, Parquet, Wanted
from align.data.text_kinds import check_encoding, delimiter_of

SUFFIXES = (".jsonl", ".json", ".parquet")  # which documents may have too
TEXTS = (".txt", ".txt.gz")  # one document each
ROW_SUFFIXES = (*SUFFIXES, ".csv", ".tsv", ".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.gz", *TEXTS)


@dataclass(frozen=True)
class RawRow:
    """One row as it was read.

    Attributes:
        index: its place in the whole source, from 0; fixed whatever process reads it.
        source: for messages to people, 1-based: `train.jsonl:17` (line), `train.parquet:17` (row).
        values: column → value.
        unseen: further columns, which the source did not decode.
    """

    index: int
    source: str
    values: dict[str, Any]
    unseen: tuple[str, ...] = ()


class Source(Protocol):
    """A file or a data set that holds rows; small to pickle, so that any process can read its share.

    `name` is what messages call it: a file's path in the folder that was given.
    """

    @property
    def name(self) -> str:
        """For messages and places of rows: `train.jsonl`, `2024/train.jsonl`."""

    def count(self) -> int:
        """Places for rows, blank lines included; counted once."""

    def read(self, start: int, stop: int | None = None) -> Iterator[tuple[int, str, Values]]:
        """`(place, where, values)` of the rows at places start … stop − 1: `16, "train.jsonl:17", {"prompt": …}`.

        In the place of the values of a row that cannot be read stands why; None reads to the end.
        """

    def unseen(self) -> tuple[str, ...]:
        """Columns that are there and that `read` leaves out."""

    def size(self) -> int:
        """Bytes of all rows together, about."""

    def identity(self) -> list[Any]:
        """Its name, and what changes when the rows change; plain JSON values."""


def suffix_of(path: Path | str) -> str:
    """The ending by which a file of rows is known, `.jsonl.gz`; empty for others."""
    name = Path(path).name.lower()
    return max((suffix for suffix in ROW_SUFFIXES if name.endswith(suffix)), key=len, default="")


def file_source(path: Path, key: str, wanted: Wanted = None, *, folder: Path | None = None) -> Source:
    """The file as a source of rows.

    Args:
        path: an existing file.
        key: the setting that names it, for messages.
        wanted: which columns are read, where a file can be read by columns.
        folder: the one that was given; messages name the file by its path in it.

    Raises:
        UserError: an unknown ending, an empty file, or one that may not be read.
    """
    suffix = suffix_of(path)
    if not suffix:
        raise UserError(f"{key}={path} has an unknown ending: use {', '.join(ROW_SUFFIXES)}.")
    if path.stat().st_size == 0:
        raise UserError(f"{key}={path} is empty.")
    name = path.name if folder is None else path.relative_to(folder).as_posix()
    kinds: dict[str, Callable[[], Source]] = {
        ".jsonl": lambda: JsonLines(path, name),
        ".json": lambda: _json_source(path, name),
        ".parquet": lambda: Parquet(path, name, wanted),
        ".csv": lambda: Csv(path, name, delimiter_of(path, ",")),
        ".tsv": lambda: Csv(path, name, delimiter_of(path, "\t")),
        ".txt": lambda: TextFile(path, name),
    }
    try:
        if suffix != ".parquet":
            check_encoding(path, name)
        return kinds[suffix.removesuffix(".gz")]()
    except PermissionError as error:
        raise UserError(f"{key}={path} may not be read: {error.strerror}.") from error


def _json_source(path: Path, name: str) -> Source:
    """A `.json` file: JSON Lines, one object, or a list."""
    if holds_lines(path):
        return JsonLines(path, name)
    return JsonObject(path, name) if holds_object(path) else JsonList(path, name)
