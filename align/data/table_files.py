"""Rows of tables: CSV, Parquet and data sets of `datasets`, read a few rows at a time."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError, first_line
from align.data import faults
from align.data.contents import Cell
from align.data.faults import RowError
from align.data.json_files import Values
from align.data.row_files import RowFile, opened

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset

BATCH_BYTES = 8_000_000  # decoded at once, about: a long row is megabytes, a short one a few hundred bytes
BATCH_ROWS = (16, 1024)
# Whether a column is read; None reads all.
Wanted = Callable[[str], bool] | None


@dataclass(frozen=True)
class Csv(RowFile):
    """A table as text, the first line naming its columns; an empty field counts as absent."""

    delimiter: str = ","

    @cached_property
    def _rows(self) -> int:
        return sum(1 for _ in self.read(0))

    def count(self) -> int:
        """Rows of the file."""
        return self._rows

    def read(self, start: int, stop: int | None = None) -> Iterator[tuple[int, str, Values]]:
        """See `Source.read`."""
        csv.field_size_limit(sys.maxsize)  # the library's own is 128 KB, less than a long context has
        with io.TextIOWrapper(opened(self.path), encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file, delimiter=self.delimiter, strict=True)
            try:
                names = next(table, [])
                _check_names([name for name in names if name], self.name)
                for place, fields in enumerate(islice(self._lines(table), start, stop), start):
                    where, values = fields
                    yield place, where, self._row(where, names, values)
            except csv.Error as error:
                raise UserError(f"{self.name}:{table.line_num}: malformed table ({error}).") from error
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self.name}: not UTF-8 text (byte {error.object[error.start]:#04x} behind line "
                    f"{table.line_num}): convert it."
                ) from error

    def _lines(self, table: Any) -> Iterator[tuple[str, list[str]]]:
        """Every row that is not blank, with the line on which it begins."""
        line = table.line_num + 1
        for fields in table:
            if fields:
                yield f"{self.name}:{line}", fields
            line = table.line_num + 1

    def _row(self, where: str, names: list[str], fields: list[str]) -> Values:
        if len(fields) != len(names):
            return RowError(
                where,
                f"it has {len(fields)} fields, and the first line names {len(names)} columns.",
                reason=faults.UNREADABLE,
            )
        return {
            name: (Cell(field) if field.startswith("[") else field) or None
            for name, field in zip(names, fields, strict=True)
        }


@dataclass(frozen=True)
class Parquet(RowFile):
    """A Parquet file.

    Attributes:
        path, name: see `RowFile`.
        wanted: which columns are read. What stands in others, such as a date that Python does not know, does no harm.
    """

    wanted: Wanted = None

    def _open(self) -> pyarrow.parquet.ParquetFile:
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{self.name} cannot be read as Parquet: {first_line(error)}.") from error

    def count(self) -> int:
        """Rows of the file."""
        return self._open().metadata.num_rows

    def read(self, start: int, stop: int | None = None) -> Iterator[tuple[int, str, Values]]:
        """See `Source.read`."""
        import pyarrow

        file = self._open()
        stop = file.metadata.num_rows if stop is None else stop
        names = _chosen_names(file.schema_arrow.names, self.wanted)
        _check_names(names, self.name)
        place = 0
        for group in range(file.num_row_groups):
            described = file.metadata.row_group(group)
            if place + described.num_rows <= start or place >= stop:
                place += described.num_rows
                continue
            size = _batch_rows(described.total_byte_size, described.num_rows)
            try:
                for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=names):
                    first, last = max(start - place, 0), min(stop - place, batch.num_rows)
                    if first < last:
                        rows = _as_python(batch.slice(first, last - first), self.name)
                        for at, values in enumerate(rows, place + first):
                            yield at, f"{self.name}:{at + 1}", values
                    place += batch.num_rows
                    if place >= stop:  # what follows in the group would be decoded for nothing
                        return
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(
                    f"{self.name} cannot be read as Parquet behind row {place}: {first_line(error)}."
                ) from error


@dataclass(frozen=True)
class Saved:
    """A split of a `datasets` data set, from a folder or the Hub; `wanted` as in `Parquet`."""

    name: str
    dataset: Dataset
    wanted: Wanted = None

    def count(self) -> int:
        """Rows of the split."""
        return len(self.dataset)

    def read(self, start: int, stop: int | None = None) -> Iterator[tuple[int, str, Values]]:
        """See `Source.read`."""
        names = _chosen_names(self.dataset.column_names, self.wanted)
        arrow = self.dataset.select_columns(names).with_format("arrow")
        size = _batch_rows(self.dataset.data.nbytes, len(self.dataset.data))
        stop = len(arrow) if stop is None else min(stop, len(arrow))
        for first in range(start, stop, size):
            rows = _as_python(arrow[first : min(first + size, stop)], self.name)
            for at, values in enumerate(rows, first):
                yield at, f"{self.name}:{at + 1}", values

    def size(self) -> int:
        """See `Source.size`."""
        return self.dataset.data.nbytes

    def identity(self) -> list[Any]:
        """Name and the fingerprint that `datasets` keeps."""
        return [self.name, self.dataset._fingerprint, len(self.dataset)]


def _check_names(names: Sequence[str], name: str) -> None:
    """Refuses a table with two columns of one name, of which only the last would be read."""
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice is not None:
        raise UserError(f"{name} has two columns called {twice}, and only one can be read: rename one.")


def _chosen_names(names: list[str], wanted: Wanted) -> list[str]:
    """The columns that are read; all where none of them is wanted, so that a complaint can name them."""
    if wanted is None:
        return names
    return [name for name in names if wanted(name)] or names


def _batch_rows(size: int, rows: int) -> int:
    """How many rows are decoded at once, of so many bytes together."""
    low, high = BATCH_ROWS
    return min(high, max(low, BATCH_BYTES * rows // max(size, 1)))


def _as_python(table: Any, name: str) -> list[dict[str, Any]]:
    """A piece of a table as dictionaries."""
    try:
        return table.to_pylist()
    except (OverflowError, ValueError) as error:
        for column in table.schema.names:
            try:
                table.column(column).to_pylist()
            except (OverflowError, ValueError):
                raise UserError(
                    f"{name}: column {column} holds a value that Python does not know ({first_line(error)}): "
                    "leave the column out."
                ) from error
        raise
