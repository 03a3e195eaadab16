"""What a text file of rows is written in: its encoding, and what separates the columns of a table."""

from __future__ import annotations

import codecs
import csv
from pathlib import Path

from align.core.errors import UserError
from align.data.row_files import opened

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # begins like UTF-16's, and so comes first
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def check_encoding(path: Path, name: str) -> None:
    """Refuses a text that its first bytes show to be no UTF-8, in one sentence for the whole file.

    Raises:
        UserError: it is UTF-16 or UTF-32.
    """
    with opened(path) as file:
        head = file.read(4)
    kind = next((kind for mark, kind in _MARKS.items() if head.startswith(mark)), None)
    if kind is None and len(head) == 4 and (head[0] == 0) != (head[1] == 0):
        kind = "UTF-16"  # without a mark: every other byte of what ASCII knows is 0
    if kind is not None:
        raise UserError(f"{name} is {kind} text, and rows are read as UTF-8: save it as UTF-8.")


def delimiter_of(path: Path, own: str) -> str:
    """What separates the columns of a table: `own`, unless its first line has none, and one other alone."""
    with opened(path) as file:
        line = file.readline().decode("utf-8-sig", errors="replace").strip("\r\n")
    if own in line:
        return own
    try:
        others = [
            one for one in DELIMITERS if len(next(csv.reader([line], delimiter=one, strict=True), [])) > 1
        ]
    except csv.Error:
        return own
    return others[0] if len(others) == 1 else own


def bad_byte(path: Path) -> tuple[int, int] | None:
    """The line, from 1, and the value of the first byte of a file that is no UTF-8; None where all of it is."""
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return number, line[error.start]
    return None
