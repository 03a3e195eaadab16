"""Rows that cannot be used: each with its place, a sentence, and a reason by which they are counted."""

from __future__ import annotations

from typing import Any

from align.core.errors import UserError

# Why a row cannot be used. Rows are grouped and counted by these words.
UNREADABLE = "unreadable"
UNKNOWN_LAYOUT = "unknown layout"
MISSING = "missing column"
WRONG_TYPE = "wrong type"
EMPTY = "empty text"
NOT_TEXT = "not text"
MESSAGES = "order or roles of messages"
BAD_LABEL = "marked as bad"
NO_REJECTED = "no rejected answer"
ALL_EQUAL = "all answers equal"
NO_SHORT = "no short context"
PRE_TOKENISED = "pre-tokenised columns"
VOCABULARY = "outside the vocabulary"
TEMPLATE = "refused by the chat template"
TOO_LONG = "too long"
TOO_SHORT = "nothing to predict"
OTHER = "other"


class RowError(UserError):
    """One row that cannot be used: `train.jsonl:17: column chosen is empty.`

    Attributes:
        source: where the row stands.
        reason: one of the words above.
    """

    def __init__(self, source: str, sentence: str, *, reason: str = OTHER) -> None:
        # Half of a surrogate pair, which JSON can spell, is no text that can be printed or stored.
        super().__init__(f"{source}: {sentence}".encode("utf-8", "backslashreplace").decode())
        self.source = source
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Worker processes send it whole."""
        return _again, (str(self), self.source, self.reason)


def _again(message: str, source: str, reason: str) -> RowError:
    return RowError(source, message.removeprefix(f"{source}: "), reason=reason)


def as_row_error(error: UserError, source: str, *, reason: str = OTHER) -> RowError:
    """Any complaint about the row at `source` as a `RowError`; one that is it already stays as it is."""
    if isinstance(error, RowError):
        return error
    return RowError(source, str(error).removeprefix(f"{source}: "), reason=reason)
