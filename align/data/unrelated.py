"""An answer to another prompt behind each row's own, by which KTO estimates how far the policy is from its reference.

Rows of the prompts A, A, B with the answers a, b, c get c, c and a: each takes the own answer of the next row with
another prompt, in file order; the last rows take it from the beginning. It is fixed when rows are read, so that the
same rows give the same answers in every run and every process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from align.core.errors import UserError
from align.data.examples import Answer
from align.data.labels import UNRELATED
from align.data.stored_rows import to_example, to_row

Row = dict[str, Any]  # in the columns of `stored_rows.FEATURES`


def with_unrelated(
    rows: Iterable[Row],
    following: Callable[[], Iterator[Row]],
    *,
    kinds: tuple[str, ...],
    limit: int | None,
) -> Iterator[Row]:
    """The rows in their order, each usable one with the first answer of the next usable row of another prompt.

    Args:
        rows: a stretch of the data.
        following: gives what comes behind it and then what comes before it; called where the stretch has run out.
        kinds: of the rows' numbers (`needs.columns`): of kind `label` the answer's is −1.
        limit: `data.max_length`; what of the answer goes beyond it is cut. None for any length.

    Raises:
        UserError: no row has another prompt.
    """
    waiting: list[Row] = []  # of one prompt, with the unusable ones between
    for row in rows:
        if _differs(row, waiting):
            yield from _answered(waiting, row, kinds, limit)
            waiting = []
        waiting.append(row)
    if not any(map(_usable, waiting)):
        yield from waiting
        return
    other = next((row for row in following() if _differs(row, waiting)), None)
    if other is None:
        first = next(row for row in waiting if _usable(row))
        raise UserError(
            f"{first['source']}: every row has this prompt, and the method estimates a KL by answers to other prompts: "
            "give rows of at least two prompts."
        )
    yield from _answered(waiting, other, kinds, limit)


def _usable(row: Row) -> bool:
    return not row["bad_reason"]


def _differs(row: Row, waiting: Iterable[Row]) -> bool:
    """Whether a row is usable and has another prompt than those that wait, of which there is one."""
    first = next(filter(_usable, waiting), None)
    return first is not None and _usable(row) and row["prompt_hash"] != first["prompt_hash"]


def _answered(waiting: Iterable[Row], other: Row, kinds: tuple[str, ...], limit: int | None) -> Iterator[Row]:
    """The rows that wait, the usable ones with the first answer of `other`."""
    answer = to_example(other).answers[0]
    for row in waiting:
        yield _with_answer(row, answer, kinds, limit) if _usable(row) else row


def _with_answer(row: Row, answer: Answer, kinds: tuple[str, ...], limit: int | None) -> Row:
    """A row with one answer more; of what goes beyond `limit`, or beyond the room of a placed row, nothing is left."""
    example = to_example(row)
    room = len(answer.input_ids) if limit is None else limit - len(example.prompt_ids)
    if example.drawn is not None:  # its positions leave as much behind the prompt, in every epoch
        room = min(room, example.drawn.room)
    weights = None if answer.weights is None else answer.weights[:room]
    fitting = Answer(answer.input_ids[:room], answer.scored[:room], weights)
    numbers = example.columns
    if numbers is not None:
        numbers = np.column_stack(
            [numbers, [_number(kind, own) for kind, own in zip(kinds, numbers, strict=True)]]
        )
    return to_row(
        replace(example, answers=(*example.answers, fitting), columns=numbers),
        dropped_rejected=row["dropped_rejected"],
        unread=row["unread"],
        scores=row["scores"],
        cut_unrelated=len(answer.input_ids) - len(fitting.input_ids),
    )


def _number(kind: str, own: np.ndarray) -> float:
    """What the answer to another prompt has of a number; a prompt's stands once for each answer."""
    return {"label": UNRELATED, "prompt": float(own[0])}.get(kind, 0.0)
