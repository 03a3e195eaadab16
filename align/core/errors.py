"""The one exception for what a user can put right."""

from __future__ import annotations

import errno

_FULL = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would pass the size limit of this process or file system",
}
# Writers in other languages give the system's words, or only their own.
_FULL_WORDS = {
    "no space left on device": _FULL[errno.ENOSPC],
    "disk quota exceeded": _FULL[errno.EDQUOT],
    "file too large": _FULL[errno.EFBIG],
    "pytorchstreamwriter failed writing": "the disk did not take the data; it is probably full",
    "inline_container": "the disk did not take the data; it is probably full",
}


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, where (file, row, key) and what to do.

    The command line prints it without a traceback and exits with code 2; so does a notebook show it.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class AlignWarning(UserWarning):
    """What a user should know and need not put right: one sentence. Commands print it without its place in the code."""


class MovedWarning(AlignWarning, FutureWarning):
    """A name that has moved was used by its old place."""


def first_line(error: BaseException) -> str:
    """What a library's exception says, for a sentence of ours: its first line without the full stop, else its kind."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def shortage(error: BaseException) -> str | None:
    """In words, how a disk refused to take what was written; None for any other error."""
    seen: BaseException | None = error
    while seen is not None:  # a writer that fails while it closes hides what made it fail
        if getattr(seen, "errno", None) in _FULL:
            return _FULL[seen.errno]  # type: ignore[attr-defined]
        text = str(seen).lower()
        for words, reason in _FULL_WORDS.items():
            if words in text:
                return reason
        seen = seen.__cause__ or seen.__context__
    return None
