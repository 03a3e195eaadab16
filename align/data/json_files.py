"""JSON Lines and JSON lists, compressed or not, read a few rows at a time."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any

from align.core.errors import UserError
from align.data import faults
from align.data.faults import RowError

Values = dict[str, Any] | RowError
_MARK_EVERY = 4096  # rows between two places in a file that are remembered, to begin there
_BLANK = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line; blank lines are skipped."""

    path: Path

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
                    where = f"{self.path.name}:{place + 1}"
                    yield place, where, _line(text, self.path.name, place, where)

    def size(self) -> int:
        """See `Source.size`."""
        return self.path.stat().st_size

    def identity(self) -> list[Any]:
        """Path, size and time of change."""
        return file_identity(self.path)


@dataclass(frozen=True)
class JsonList:
    """One JSON list of objects; its text is held whole, its rows are parsed one by one."""

    path: Path

    @cached_property
    def _marks(self) -> tuple[int, list[int]]:
        """Entries of the list, and where in its text every 4,096th begins."""
        marks, count = [], 0
        for at, _ in _entries(self._text(), self.path.name, 0):
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
            raise _not_utf8(content, error, self.path.name, 0) from error

    def count(self) -> int:
        """Entries of the list."""
        return self._marks[0]

    def read(self, start: int, stop: int | None = None) -> Iterator[tuple[int, str, Values]]:
        """See `Source.read`."""
        skipped, at = 0, 0
        if start >= _MARK_EVERY:
            skipped, at = start // _MARK_EVERY * _MARK_EVERY, self._marks[1][start // _MARK_EVERY]
        last = None if stop is None else stop - skipped
        entries = islice(_entries(self._text(), self.path.name, at), start - skipped, last)
        for place, (_, value) in enumerate(entries, start):
            where = f"{self.path.name}:{place + 1}"
            yield place, where, as_object(value, where)

    def size(self) -> int:
        """See `Source.size`."""
        return self.path.stat().st_size

    def identity(self) -> list[Any]:
        """Path, size and time of change."""
        return file_identity(self.path)


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
        return isinstance(_parsed(found[0].decode("utf-8")), dict)
    except (ValueError, RecursionError):
        return False


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


def as_object(value: Any, where: str) -> Values:
    """A row's columns; what is no object is a row that cannot be used."""
    if isinstance(value, dict):
        return value
    return RowError(
        where,
        f"a row must be an object with named columns, not a {json_kind(value)}.",
        reason=faults.UNREADABLE,
    )


def json_kind(value: Any) -> str:
    """A JSON value's kind, for messages."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def file_identity(path: Path) -> list[Any]:
    """What changes when the file does."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _line(text: bytes, name: str, place: int, where: str) -> Values:
    """One line's row, or why it is none."""
    try:
        decoded = text.decode("utf-8-sig" if place == 0 else "utf-8")
        return as_object(_parsed(decoded), where)
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
        try:
            return _DECODER.raw_decode(text, at)
        except json.JSONDecodeError:
            raise
        except ValueError:
            return _LARGE.raw_decode(text, at)
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


# A whole number of more digits than Python reads (4,300) stands in columns that nobody reads, as a rule.
_LARGE = json.JSONDecoder(parse_int=float)
_DECODER = json.JSONDecoder()


def _parsed(text: str) -> Any:
    """`text` as JSON; a whole number of thousands of digits is read as infinity."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return _LARGE.decode(text)
