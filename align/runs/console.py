"""A quiet console: libraries' log records and warnings go to the log file, ours stand on the console too."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, ClassVar, TextIO

from align.core.errors import AlignWarning

OWN = "align"


class LibraryLogger(logging.Logger):
    """A logger that only the root's handlers hear, whatever handlers a library gives it; ours are heard as usual."""

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        """Hands a record on."""
        if is_own(self.name):
            super().callHandlers(record)
        else:
            logging.getLogger().callHandlers(record)


def is_own(name: str) -> bool:
    """Whether a logger is ours."""
    return name == OWN or name.startswith(f"{OWN}.")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Around a command, before libraries are imported: they make their loggers when they are.

    Afterwards `logging` and `warnings` are as before, also what Hydra has set of them.
    """
    kind, show = logging.getLoggerClass(), warnings.showwarning
    loggers = [logging.getLogger(), logging.getLogger(OWN)]
    handlers = [list(logger.handlers) for logger in loggers]
    logging.setLoggerClass(LibraryLogger)
    warnings.showwarning = _show
    try:
        yield
    finally:
        logging.setLoggerClass(kind)
        warnings.showwarning = show
        for logger, before in zip(loggers, handlers, strict=True):
            for handler in set(logger.handlers) - set(before):
                handler.close()
            logger.handlers[:] = before


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


class CallLogger(logging.Logger):
    """A logger made while a command runs as a function: until that call ends its records go to the call's log."""

    sink: ClassVar[logging.Handler | None] = None

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        """Hands a record on."""
        if CallLogger.sink is not None and not is_own(self.name):
            CallLogger.sink.handle(record)
        else:
            super().callHandlers(record)


class CallLog(logging.FileHandler):
    """A log file that, with its folder, appears with its first record."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()


@contextmanager
def quiet_call(log: Path | None) -> Iterator[None]:
    """While a command runs as a function: warnings and records of libraries imported meanwhile go to its log.

    Loggers that are there already belong to the caller and stay as they are, and so does everything else of
    `logging` and `warnings` when the call has ended. Our own warnings are shown as Python shows them.

    Within a command's own process, or within another such call, theirs is kept.

    Args:
        log: the file, written once there is something to write; None keeps nothing.
    """
    if CallLogger.sink is not None or issubclass(logging.getLoggerClass(), LibraryLogger):
        yield
        return
    handler = logging.NullHandler() if log is None else CallLog(log)
    kind, show, outer = logging.getLoggerClass(), warnings.showwarning, CallLogger.sink

    def shown(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, AlignWarning):
            show(message, category, filename, lineno, file, line)
            return
        text = f"{filename}:{lineno}: {category.__name__}: {message}"
        handler.handle(logging.LogRecord("py.warnings", logging.WARNING, filename, lineno, text, None, None))

    logging.setLoggerClass(CallLogger)
    CallLogger.sink, warnings.showwarning = handler, shown
    try:
        yield
    finally:
        logging.setLoggerClass(kind)
        CallLogger.sink, warnings.showwarning = outer, show
        handler.close()
