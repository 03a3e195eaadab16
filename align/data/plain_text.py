"""Text files as rows: a file is one document, a row with the column `text`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from align.data import faults
from align.data.faults import RowError
from align.data.json_files import Values
from align.data.row_files import RowFile, opened


@dataclass(frozen=True)
class TextFile(RowFile):
    """A file of plain text: the one row `{"text": …}`, every character as it stands but for a byte-order mark."""

    def count(self) -> int:
        """One."""
        return 1

    def read(self, start: int, stop: int | None = None) -> Iterator[tuple[int, str, Values]]:
        """See `Source.read`."""
        if start > 0 or stop == 0:
            return
        with opened(self.path) as file:
            content = file.read()
        try:
            values: Values = {"text": content.decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            values = RowError(
                self.name,
                f"line {line} is no UTF-8 text (byte {content[error.start]:#04x}): save it as UTF-8.",
                reason=faults.UNREADABLE,
            )
        yield 0, self.name, values
