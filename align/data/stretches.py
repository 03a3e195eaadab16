"""A stretch of a place's rows, from raw to stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from align.data.bad_rows import stopped
from align.data.faults import RowError
from align.data.row_builder import RowBuilder
from align.data.sources import RawRow, Source, count_rows, read_places
from align.data.stored_rows import to_bad_row
from align.data.unrelated import with_unrelated


def read_stored(
    sources: Sequence[Source],
    builder: RowBuilder,
    span: tuple[int, int],
    *,
    stop: bool,
    counted: Callable[[], None],
) -> Iterator[dict[str, Any]]:
    """The stored rows of a stretch, in their order, with an answer to another prompt where one is asked for.

    Args:
        sources: of the place.
        builder: makes a row's columns.
        span: first place of the stretch, and the one behind its last.
        stop: a row that cannot be used ends it.
        counted: called for each raw row of the stretch.

    Raises:
        RowError: there is such a row, and `stop` is set.
        UserError: every row has the same prompt, where one is asked for.
    """

    def stored(start: int, end: int) -> Iterator[dict[str, Any]]:
        for row in read_places(sources, start, end):
            yield from _stored(row, builder, stop=stop)
            if (start, end) == span:
                counted()

    def following() -> Iterator[dict[str, Any]]:
        end = count_rows(sources)
        limit = builder.tokenize.settings.limit
        yield from stored(span[1], end if limit is None else min(end, limit))
        yield from stored(0, span[1])

    if not builder.demands.unrelated:
        return stored(*span)
    kinds = tuple(number.kind for number in builder.demands.numbers)
    limit = builder.tokenize.settings.max_length
    return with_unrelated(stored(*span), following, kinds=kinds, limit=limit)


def _stored(row: RawRow | RowError, builder: RowBuilder, *, stop: bool) -> list[dict[str, Any]]:
    """The columns of the rows that one raw row gives, usable or not.

    Raises:
        RowError: it is not, and `stop` is set.
    """
    try:
        if isinstance(row, RowError):
            raise row
        return builder(row)
    except RowError as bad:
        if stop:
            raise stopped(bad) from None
        return [to_bad_row(bad)]
    except Exception as error:
        error.add_note(f"It happened at {row.source}.")
        raise
