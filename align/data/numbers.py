"""Numbers of a row that reach the loss (`method.needs.columns`): a reference's log-prob, a reward, a label, a weight.

A row `{"prompt": …, "chosen": …, "rejected": [b, c], "aligned_logp": -1.5, "reward": [1, 0, 0.5]}` gives `[-1.5]` for a
number of kind `prompt`, and `[1, 0, 0.5]`, the chosen answer's first, for one of kind `answer`.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from align.core.config import suggestion
from align.core.errors import UserError
from align.core.readable import counted
from align.data import faults
from align.data.columns import Columns, unpadded
from align.data.contents import as_text
from align.data.labels import read_labels


class Number(NamedTuple):
    """A number that a method reads of every row.

    Attributes:
        name: the loss's name for it.
        kind: `prompt`, one a row; `answer`, one for each answer; `label`, 1 or 0 for each, see labels.py.
        place: the column; with dots, inside a column that holds a mapping: `selection.details.mean_logp`.
    """

    name: str
    kind: str
    place: str

    @property
    def column(self) -> str:
        """The column that has to be there for it, where no column has the whole name."""
        return self.place.partition(".")[0]


def numbers_of(kinds: Mapping[str, str], places: Mapping[str, str] | None) -> tuple[Number, ...]:
    """What a method reads, and where.

    Args:
        kinds: `method.needs.columns`.
        places: `data.numbers`, name → column.

    Raises:
        UserError: `data.numbers` names what the method does not read.
    """
    places = places or {}
    for name in places:
        if name not in kinds:
            known = f"it reads {', '.join(kinds)}{suggestion(name, kinds)}" if kinds else "it reads none"
            raise UserError(f"data.numbers.{name} is no number that the method reads: {known}.")
    return tuple(Number(name, kind, places.get(name, name)) for name, kind in kinds.items())


def wanted_columns(numbers: Iterable[Number]) -> set[str]:
    """The columns of a table in which they may stand."""
    return {name for number in numbers for name in (number.place, number.column)}


def read_numbers(
    columns: Columns, numbers: Sequence[Number], *, answers: int, kept: Collection[int]
) -> np.ndarray:
    """`[K, 1 + M]` fp64: the K numbers of a row, each for the chosen answer and the M rejected ones that are kept.

    A number of kind `prompt` stands once for each answer. Booleans count as 1 and 0.

    Args:
        columns: the row.
        numbers: K of them.
        answers: of the row as it was read, the chosen one included.
        kept: which of the rejected answers are kept, from 0.

    Raises:
        RowError: one is missing, is no number or not finite, or there are not as many as answers.
    """
    table = [_read(columns, number, answers=answers) for number in numbers]
    return np.array(table, dtype=np.float64).reshape(len(numbers), answers)[:, [0, *(j + 1 for j in kept)]]


def _read(columns: Columns, number: Number, *, answers: int) -> list[float]:
    """One number for each answer of the row as it was read."""
    if number.kind == "label":
        return read_labels(columns, number.place, answers=answers)
    value = _found(columns, number)
    if number.kind == "prompt":
        return [_finite(columns, number, value)] * answers
    values = unpadded(value) if isinstance(value, list) else [value]
    if len(values) != answers:
        raise columns.error(
            f"column {number.place} has {counted(len(values), 'number')} for {counted(answers, 'answer')}: give one "
            "for each, the chosen answer's first.",
            reason=faults.WRONG_TYPE,
        )
    return [_finite(columns, number, each) for each in values]


def _found(columns: Columns, number: Number) -> Any:
    """What stands in its place, read out of a text where a table or JSON holds it as one."""
    value = columns.value(number.place)
    if value is None and "." in number.place:
        value = columns.value(number.column)
        for key in number.place.split(".")[1:]:
            value = _parsed(value)
            value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        raise columns.error(
            f"column {number.place}, a number that the method reads, is missing: add it, or name another column with "
            f"data.numbers={{{number.name}: …}}.",
            reason=faults.MISSING,
        )
    return _parsed(value)


def _parsed(value: Any) -> Any:
    """A list or a mapping that stands as text; anything else as it is."""
    text = as_text(value)
    if isinstance(text, str) and text.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return value
    return value


_WORDS = {"true": 1.0, "false": 0.0}  # as tables write booleans


def _finite(columns: Columns, number: Number, value: Any) -> float:
    """A number as a float; also one that a table holds as text."""
    text = as_text(value)
    if isinstance(text, str):
        word = text.strip().lower()
        value = _WORDS.get(word, word)
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        shown = reprlib.repr(text)
        wanted = "a number" if number.kind == "prompt" else "a number for each answer"
        raise columns.error(
            f"column {number.place} must hold {wanted}, not {shown:.40}.", reason=faults.WRONG_TYPE
        ) from None
    if not math.isfinite(found):
        raise columns.error(
            f"column {number.place} holds {found}, which is not finite: leave the row out.",
            reason=faults.WRONG_TYPE,
        )
    return found
