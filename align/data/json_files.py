"""JSON Lines and JSON lists, compressed or not, read a few rows at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from align.core.errors import UserError
from align.data import faults
from align.data.faults import RowError
from align.data.row_files import RowFile, opened

Values = dict[str, Any] | RowError
_MARK_EVERY = 4096  # rows between two places in a file that are remembered, to begin there
_BLANK = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class JsonLines(RowFile):
    """One JSON object a line; blank lines are skipped."""

    @cached_property
    def _marks(self) -> tuple[int, list[int]]:
        """Lines of the file, and where in it every 4,096th line begins."""
        lines, offset, marks = 0, 0, []
        with opened(self.path) as file:
            for line in file:
                if lines % _MARK_EVERY == 0:
                    marks.append(offset)
                lines += 1
                offset += len(line)
        return lines, marks

    def count(self) -> int:
        """Lines of the file."""
        return self._marks[0]

    def read(self, start: int, stop: int | None = None) -> Iterator[tuple[int, str, Values]]:
        """See `Source.read`."""
        with opened(self.path) as file:
            skipped = 0
            if start >= _MARK_EVERY:
                skipped = start // _MARK_EVERY * _MARK_EVERY
                file.seek(self._marks[1][start // _MARK_EVERY])
            last = None if stop is None else stop - skipped
            for place, line in enumerate(islice(file, start - skipped, last), start):
                text = line.rstrip()
                if text:
                    where = f"{self.name}:{place + 1}"
                    yield place, where, _line(text, self.name, place, where)


@dataclass(frozen=True)
class JsonList(RowFile):
    """One JSON list of objects; its text is held whole, its rows are parsed one by one."""

    @cached_property
    def _marks(self) -> tuple[int, list[int]]:
        """Entries of the list, and where in its text every 4,096th begins."""
        marks, count = [], 0
        for at, _ in _entries(self._text(), self.name, 0):
            if count % _MARK_EVERY == 0:
                marks.append(at)
            count += 1
        return count, marks

    def _text(self) -> str:
        with opened(self.path) as file:
            content = file.read()
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _not_utf8(content, error, self.name, 0) from error

    def count(self) -> int:
        """Entries of the list."""
        return self._marks[0]

    def read(self, start: int, stop: int | None = None) -> Iterator[tuple[int, str, Values]]:
        """See `Source.read`."""
        skipped, at = 0, 0
        if start >= _MARK_EVERY:
            skipped, at = start // _MARK_EVERY * _MARK_EVERY, self._marks[1][start // _MARK_EVERY]
        last = None if stop is None else stop - skipped
        entries = islice(_entries(self._text(), self.name, at), start - skipped, last)
        for place, (_, value) in enumerate(entries, start):
            where = f"{self.name}:{place + 1}"
            yield place, where, as_object(value, where)


def holds_lines(path: Path) -> bool:
    """Whether a file called .json holds JSON Lines: its first line is an object, and another line follows."""
    with opened(path) as file:
        if not file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            return False
        file.seek(0)
        lines = (line.strip() for line in file)
        found = list(islice((line.removeprefix(b"\xef\xbb\xbf") for line in lines if line), 2))
    if len(found) < 2 or not found[0].startswith(b"{"):
        return False
    try:
        return isinstance(_parsed(found[0].decode("utf-8"))[0], dict | Repeated)
    except (ValueError, RecursionError):
        return False


def as_object(value: Any, where: str) -> Values:
    """A row's columns; what is no object is a row that cannot be used."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Repeated):
        return RowError(
            where,
            f"the key {value.key} stands twice in one object, and only one can be read: rename one, or leave it out.",
            reason=faults.UNREADABLE,
        )
    return RowError(
        where,
        f"a row must be an object with named columns, not a {json_kind(value)}.",
        reason=faults.UNREADABLE,
    )


def json_kind(value: Any) -> str:
    """A JSON value's kind, for messages."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _line(text: bytes, name: str, place: int, where: str) -> Values:
    """One line's row, or why it is none."""
    try:
        decoded = text.decode("utf-8-sig" if place == 0 else "utf-8")
        return as_object(_parsed(decoded)[0], where)
    except json.JSONDecodeError as error:
        sentence = f"malformed JSON ({error.msg} at column {error.colno})."
    except UnicodeDecodeError as error:
        return _not_utf8(text, error, name, place)
    except RecursionError:
        sentence = "malformed JSON (nested too deeply)."
    return RowError(where, sentence, reason=faults.UNREADABLE)


def _entries(text: str, name: str, at: int) -> Iterator[tuple[int, Any]]:
    """The entries of a list, each with where it begins; from the entry at `at` on, 0 is the list's beginning."""
    if at == 0:
        at = _blank(text, 0)
        if text[at : at + 1] != "[":
            raise UserError(
                f"{name}: a .json file must hold a list of rows, not one {_first_kind(text, name)}."
            )
        at = _blank(text, at + 1)
        if text[at : at + 1] == "]":
            _check_end(text, at + 1, name)
            return
    while True:
        value, end = _next_value(text, at, name)
        yield at, value
        at = _blank(text, end)
        if text[at : at + 1] == "]":
            _check_end(text, at + 1, name)
            return
        if text[at : at + 1] != ",":
            raise _malformed(json.JSONDecodeError("Expecting ',' delimiter", text, at), name)
        at = _blank(text, at + 1)


def _next_value(text: str, at: int, name: str) -> tuple[Any, int]:
    try:
        return _parsed(text, at)
    except json.JSONDecodeError as error:
        raise _malformed(error, name) from error
    except RecursionError as error:
        line = text.count("\n", 0, at) + 1
        raise UserError(f"{name}:{line}: malformed JSON (nested too deeply).") from error


def _check_end(text: str, at: int, name: str) -> None:
    at = _blank(text, at)
    if at != len(text):
        raise _malformed(json.JSONDecodeError("Extra data", text, at), name)


def _first_kind(text: str, name: str) -> str:
    """What a file holds that holds no list."""
    value, end = _next_value(text, _blank(text, 0), name)
    _check_end(text, end, name)
    return json_kind(value)


def _blank(text: str, at: int) -> int:
    """Where the next character that is no white space stands."""
    return _BLANK.match(text, at).end()  # type: ignore[union-attr]


def _malformed(error: json.JSONDecodeError, name: str) -> UserError:
    return UserError(f"{name}:{error.lineno}: malformed JSON ({error.msg} at column {error.colno}).")


def _not_utf8(text: bytes, error: UnicodeDecodeError, name: str, line: int) -> RowError:
    at = line + 1 + text[: error.start].count(b"\n")
    sentence = f"not UTF-8 text (byte {text[error.start]:#04x})."
    return RowError(f"{name}:{at}", sentence, reason=faults.UNREADABLE)


class Repeated(NamedTuple):
    """A JSON value in which an object has a key twice, of which only the last would be read."""

    key: str


# A whole number of more digits than Python reads (4,300) stands in columns that nobody reads, as a rule.
def _decoder(repeated: list[str], parse_int: Callable[[str], Any] | None = None) -> json.JSONDecoder:
    """A decoder that notes keys that an object has twice."""

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            repeated.append(next(name for name in found if names.count(name) > 1))
        return found

    return json.JSONDecoder(object_pairs_hook=as_dict, parse_int=parse_int)


def _parsed(text: str, at: int | None = None) -> tuple[Any, int]:
    """`text` as JSON, and where it ends; a whole number of thousands of digits is read as infinity.

    Args:
        text: one JSON value, or where `at` is given a text in which a value begins there.
    """
    for parse_int in (None, float):
        repeated: list[str] = []
        decoder = _decoder(repeated, parse_int)
        try:
            value, end = (decoder.decode(text), len(text)) if at is None else decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            raise
        except ValueError:
            if parse_int is float:
                raise
            continue
        return (Repeated(repeated[0]) if repeated else value), end
    raise AssertionError
