"""What of a file or folder gives no document, as one line: nothing is left out without a word."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from align.core.readable import counted
from align.core.telling import tell

NAMED = 3  # files that are named


@dataclass
class LeftOut:
    """Counted while documents are read.

    Attributes:
        endings: of files that are not read, each with its number.
        files: names of files in which there is no text: empty ones, scanned pages.
        rows: rows whose text is empty.
        pages: of PDFs that have text on other pages.
    """

    endings: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    rows: int = 0
    pages: int = 0

    def sentence(self) -> str | None:
        """`left out: 2 files with other endings (.html 2), 1 file without text (scan.pdf)`; None where nothing is."""
        parts = []
        if self.endings:
            said = ", ".join(f"{ending or 'none'} {n}" for ending, n in sorted(self.endings.items()))
            parts.append(f"{counted(self.endings.total(), 'file')} with other endings ({said})")
        if self.files:
            more = ", …" if len(self.files) > NAMED else ""
            said = ", ".join(self.files[:NAMED]) + more
            scans = "; scanned pages need text recognition" if any(map(_is_pdf, self.files)) else ""
            parts.append(f"{counted(len(self.files), 'file')} without text ({said}{scans})")
        if self.rows:
            parts.append(f"{counted(self.rows, 'row')} without text")
        if self.pages:
            parts.append(f"{counted(self.pages, 'page')} of PDFs without text")
        return f"left out: {', '.join(parts)}" if parts else None


def say(key: str, path: str, left_out: LeftOut) -> None:
    """Prints the line, in the first process of a launch alone."""
    sentence = left_out.sentence()
    if sentence is not None:
        tell(f"{key}={path}: {sentence}.")


def _is_pdf(name: str) -> bool:
    return Path(name).suffix.lower() == ".pdf"
