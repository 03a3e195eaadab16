"""A quiet console: libraries' log records and warnings go to the log file, ours stand on the console too."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any, TextIO

from align.core.errors import AlignWarning

OWN = "align"


class LibraryLogger(logging.Logger):
    """A logger that only the root's handlers hear, whatever handlers a library gives it; ours are heard as usual."""

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        """Hands a record on."""
        if self.name == OWN or self.name.startswith(f"{OWN}."):
            super().callHandlers(record)
        else:
            logging.getLogger().callHandlers(record)


def quiet_libraries() -> None:
    """For a command's process, before libraries are imported: they make their loggers when they are."""
    logging.setLoggerClass(LibraryLogger)
    warnings.showwarning = _show


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> Any:
    """Our own warnings as a sentence on the console, others into the log."""
    if issubclass(category, AlignWarning):
        print(f"align: {message}", file=file or sys.stderr)
    else:
        logging.getLogger("py.warnings").warning(
            "%s:%s: %s: %s", filename, lineno, category.__name__, message
        )
