"""One run a folder at a time: two in one folder would make every call twice and write over each other."""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path

from align.core.errors import UserError
from align.core.telling import tell

LOCK = ".lock"  # in the output folder; an empty file, which may stay
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def exclusive(output: str | Path) -> Iterator[None]:
    """The folder is this process's own for as long as the context lasts.

    The system lets go of the lock when the process ends, however it ends, so that a killed run bars nobody. A file
    system without locks is used all the same, and that is said on stderr.

    Args:
        output: the run's folder; created where it does not exist.

    Raises:
        UserError: another process is at work in it.
    """
    path = Path(output) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"output={output} is in use by another run: wait until it ends, or name another output folder."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            tell(
                f"{output} is on a file system without locks: a second run in this folder would not be noticed."
            )
        yield
