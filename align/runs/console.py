"""A quiet console: libraries' log records and warnings go to the log file, ours stand on the console too."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, ClassVar

from align.core.errors import AlignWarning

OWN = "align"
Listener = Callable[[logging.LogRecord], object]


class LibraryLogger(logging.Logger):
    """A logger made while a command runs: until that ends only the command's listener hears it, if it is not ours.

    Whatever handlers a library gives it, and whether or not it propagates.
    """

    listener: ClassVar[Listener | None] = None

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        """Hands a record on."""
        if LibraryLogger.listener is None or is_own(self.name):
            super().callHandlers(record)
        else:
            LibraryLogger.listener(record)


def is_own(name: str) -> bool:
    """Whether a logger is ours."""
    return name == OWN or name.startswith(f"{OWN}.")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Around a command, before libraries are imported: the root's handlers hear them, as Hydra sets those up.

    Our own warnings stand on the console as a sentence. Afterwards `logging` and `warnings` are as before, also
    what Hydra has set of them.
    """
    root = logging.getLogger()
    loggers = [root, logging.getLogger(OWN)]
    handlers = [list(logger.handlers) for logger in loggers]
    try:
        with _listening(root.callHandlers, _print_sentence):
            yield
    finally:
        for logger, before in zip(loggers, handlers, strict=True):
            for handler in set(logger.handlers) - set(before):
                handler.close()
            logger.handlers[:] = before


@contextmanager
def quiet_call(log: Path | None) -> Iterator[None]:
    """While a command runs as a function: warnings and records of libraries imported meanwhile go to its log.

    Loggers that are there already belong to the caller and stay as they are, and so does everything else of
    `logging` and `warnings` when the call has ended. Our own warnings are shown as Python shows them.

    Within a command's own process, or within another such call, theirs is kept.

    Args:
        log: the file, written once there is something to write; None keeps nothing.
    """
    if LibraryLogger.listener is not None:
        yield
        return
    handler = logging.NullHandler() if log is None else CallLog(log)
    try:
        with _listening(handler.handle, warnings.showwarning):
            yield
    finally:
        handler.close()


@contextmanager
def _listening(listener: Listener, show_own: Callable[..., Any]) -> Iterator[None]:
    """Within it a listener hears libraries' records and warnings; our own warnings are shown by `show_own`."""
    kind, show = logging.getLoggerClass(), warnings.showwarning

    def shown(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *where: Any, **more: Any
    ) -> None:
        if issubclass(category, AlignWarning):
            show_own(message, category, filename, lineno, *where, **more)
            return
        text = f"{filename}:{lineno}: {category.__name__}: {message}"
        listener(logging.LogRecord("py.warnings", logging.WARNING, filename, lineno, text, None, None))

    logging.setLoggerClass(LibraryLogger)
    LibraryLogger.listener, warnings.showwarning = listener, shown
    try:
        yield
    finally:
        logging.setLoggerClass(kind)
        LibraryLogger.listener, warnings.showwarning = None, show


def _print_sentence(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning of ours on the console."""
    print(f"align: {message}", file=sys.stderr)


class CallLog(logging.FileHandler):
    """A log file that, with its folder, appears with its first record."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()


def tolerate_any_terminal() -> None:
    """What a terminal's encoding lacks is shown as `?`, so that a table does not end the run that it describes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
