"""Labels of single answers, good or bad, as TRL's unpaired rows have them: read, counted, refused where all agree.

`{"prompt": …, "completion": …, "label": true}` is a good answer. A pair needs no label: its chosen answer is good, its
rejected ones are bad.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from align.core.errors import UserError
from align.core.readable import counted
from align.data import faults
from align.data.columns import Columns
from align.data.totals import column_of, lengths_of

if TYPE_CHECKING:
    from datasets import Dataset

LABELS = ("label", "kto_tag")  # what KTO's rows say of their one answer: TRL's name, and LLaMA-Factory's
UNRELATED = -1.0  # of an answer to another prompt, see unrelated.py
_TRUTH = {True: 1.0, False: 0.0, "true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}


def read_labels(columns: Columns, place: str, *, answers: int) -> list[float]:
    """1 for each good answer of a row and 0 for each bad one, the chosen one's first.

    Args:
        columns: the row.
        place: the column, which counts beside a single answer; `kto_tag` does where there is none.
        answers: how many the row has.

    Raises:
        RowError: a single answer without a label, or with one that is neither true nor false.
    """
    if answers > 1:
        return [1.0] + [0.0] * (answers - 1)
    name = next((name for name in (place, *LABELS) if name in columns), None)
    if name is None:
        raise columns.error(
            f"column {place} is missing beside a single answer: true says that it is good, false that it is bad, and "
            "data.columns={label: …} names another column; a pair has chosen and rejected.",
            reason=faults.MISSING,
        )
    return [_truth(columns, name, "data.columns={label: …} names another column")]


def check_label(columns: Columns) -> None:
    """Refuses an answer that its row marks as bad, where the method learns every answer (SFT).

    Raises:
        RowError: it does, or its label is neither true nor false.
    """
    name = next((name for name in LABELS if name in columns), None)
    if name is not None and not _truth(
        columns, name, f"hide another meaning with data.columns={{{name}: null}}"
    ):
        raise columns.error(
            f"the answer is marked as bad ({name} is false), so that nothing is trained on it; method=kto and "
            "method=bco learn from such answers too.",
            reason=faults.BAD_LABEL,
        )


def _truth(columns: Columns, name: str, cure: str) -> float:
    """1 or 0; also of a label that a table holds as text."""
    value = columns.value(name)
    said = value.strip().lower() if isinstance(value, str) else value
    found = _TRUTH.get(said) if isinstance(said, str | bool | int | float | np.bool_ | np.number) else None
    if found is None:
        raise columns.error(
            f"column {name} beside an answer says whether it is good, true or false, and is {reprlib.repr(value)}: "
            f"{cure}.",
            reason=faults.WRONG_TYPE,
        )
    return found


def count_labels(rows: Dataset, kinds: Sequence[str]) -> dict[str, int]:
    """`good_answers`, `bad_answers` and `unrelated_answers` of stored rows.

    Args:
        rows: in the columns of `stored_rows.FEATURES`.
        kinds: of their numbers, in their order; the first `label` is read.
    """
    values = column_of(rows, "columns").flatten().to_numpy()
    answers = lengths_of(rows, "answer_lengths").to_numpy().astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(answers * len(kinds))[:-1]]) + answers * kinds.index("label")
    first = np.cumsum(answers) - answers
    labels = values[np.repeat(starts - first, answers) + np.arange(answers.sum())]
    names = {"good_answers": 1.0, "bad_answers": 0.0, "unrelated_answers": UNRELATED}
    return {name: int((labels == label).sum()) for name, label in names.items()}


def check_both(counts: dict[str, int], *, rows: int) -> None:
    """Refuses to learn from good or from bad answers alone.

    Args:
        counts: of the training rows.
        rows: how many they are.

    Raises:
        UserError: all labels are the same.
    """
    for name, other, cure in (
        ("good", "bad", "method=sft learns from good ones alone, or add bad ones"),
        ("bad", "good", "add good ones"),
    ):
        if not counts[f"{other}_answers"]:
            raise UserError(
                f"Every answer of the {counted(rows, 'training row')} is labelled {name}, and the method tells good "
                f"from bad ones: {cure}."
            )
