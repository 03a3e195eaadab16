"""Rows with a `context` and its question or questions, ours and LongReward's, as an `Example`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from align.data import faults
from align.data.columns import Columns, unpadded
from align.data.contents import as_text
from align.data.examples import Example, Turn
from align.data.turns import turn_of


class AnswerColumns(NamedTuple):
    """Names of the columns of a row with a context; of several the first that is there counts."""

    question: str
    chosen: tuple[str, str]  # of a pair, of an SFT row
    rejected: str


OURS = AnswerColumns("question", ("chosen", "completion"), "rejected")
LONGREWARD = AnswerColumns("query", ("win_response", "answer"), "lose_response")


def context_row(columns: Columns) -> Example:
    """`context` with `question` (one turn) or `questions` (several turns over one context); LongReward's rows too."""
    chunks = columns.chunks("context")
    turns = _several_turns(columns) if "questions" in columns else (_one_turn(columns),)
    return Example(columns.source, turns, chunks=chunks, system=columns.optional_text("system"))


def _one_turn(columns: Columns) -> Turn:
    """The one question over a context with its answers, under our columns' names or LongReward's."""
    names = LONGREWARD if _is_longreward(columns) else OURS
    name = columns.first(*names.chosen)
    chosen = columns.single(name, columns.answer(name, columns.get(name)))
    if name == "win_response" and names.rejected not in columns:
        raise columns.error("column lose_response is missing beside win_response.", reason=faults.MISSING)
    rejected = [columns.single(names.rejected, answer) for answer in columns.answers(names.rejected)]
    question = columns.text(names.question)
    return turn_of((chosen, *rejected), question=question, short_prompt=columns.optional_text("short_prompt"))


def _is_longreward(columns: Columns) -> bool:
    """Whether a row with a context has LongReward's column names."""
    theirs = ("query", "win_response", "lose_response")
    return "question" not in columns and any(name in columns for name in theirs)


def _several_turns(columns: Columns) -> tuple[Turn, ...]:
    """`questions`, `chosens`, `rejecteds`, `short_prompts`: one entry a turn, in each column as many.

    Two turns with one negative each: `questions=["a?", "b?"], chosens=["1", "2"], rejecteds=["3", ["4"]]`.
    """
    questions, chosens = columns.texts("questions"), columns.texts("chosens")
    rejecteds = columns.get("rejecteds") if "rejecteds" in columns else [[]] * len(questions)
    shorts: Sequence[str | None] = (
        columns.texts("short_prompts") if "short_prompts" in columns else [None] * len(questions)
    )
    if not isinstance(rejecteds, list):
        raise columns.wrong_type("rejecteds", "a list with one entry a turn")
    rejecteds = unpadded(rejecteds)
    lengths = {
        "questions": len(questions),
        "chosens": len(chosens),
        "rejecteds": len(rejecteds),
        "short_prompts": len(shorts),
    }
    if len(set(lengths.values())) > 1:
        counted = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise columns.error(f"the turns' columns have different lengths ({counted}).", reason=faults.MESSAGES)
    negatives = [_negatives(columns, entry) for entry in rejecteds]
    if len({len(entry) for entry in negatives}) > 1:
        counts = ", ".join(str(len(entry)) for entry in negatives)
        raise columns.error(
            f"every turn must have as many rejected answers as the others, not {counts}.",
            reason=faults.MESSAGES,
        )
    return tuple(
        Turn(question, chosen, rejected, short)
        for question, chosen, rejected, short in zip(questions, chosens, negatives, shorts, strict=True)
    )


def _negatives(columns: Columns, entry: Any) -> tuple[str, ...]:
    """One turn's entry of `rejecteds`: a text or a list of texts."""
    values = entry if isinstance(entry, list) else [entry]
    values = [as_text(value) for value in unpadded(values)]
    if not all(isinstance(value, str) for value in values):
        raise columns.wrong_type("rejecteds", "a list that holds a string or a list of strings for each turn")
    if not all(value.strip() for value in values):
        raise columns.empty("rejecteds", "has an empty answer")
    return tuple(values)
