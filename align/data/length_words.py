"""Who set the length to which rows are cut: sentences name the model's window where the user has set none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from align.core.errors import UserError
from align.data.faults import RowError


def in_window_words(sentence: str, window: int | None) -> str:
    """A sentence about a row that is too long, as it is true of the window: nobody has set `data.max_length`.

    Rows are stored with the sentences of `data.max_length`, whoever has set it: a later command that sets it to the
    window's length finds them too.

    Args:
        sentence: `… together more than data.max_length=8192: raise it or leave the row out.`
        window: tokens that the model was made to read, where contexts are cut to them; None changes nothing.
    """
    if window is None:
        return sentence
    return re.sub(
        rf"data\.max_length={window}: raise it or leave the row out",
        f"the model's window of {window} tokens: leave the row out, or stretch the model with model.rope",
        sentence,
    )


def rows_in_window_words(bad: Sequence[RowError], window: int | None) -> tuple[RowError, ...]:
    """As `in_window_words`, of rows that cannot be used."""
    return tuple(_row(one, window) for one in bad)


@contextmanager
def window_words(window: int | None) -> Iterator[None]:
    """Within it a refusal names the window; arguments as `in_window_words`."""
    try:
        yield
    except RowError as error:
        raise _row(error, window) from error
    except UserError as error:
        said = in_window_words(str(error), window)
        if said == str(error):
            raise
        raise UserError(said) from error


def _row(error: RowError, window: int | None) -> RowError:
    sentence = str(error).removeprefix(f"{error.source}: ")
    return RowError(error.source, in_window_words(sentence, window), reason=error.reason)
