"""Rows without a column `prompt`: a `question` beside the answers, or what chosen and rejected begin with in common."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from align.data import faults
from align.data.columns import AnswerMessages, Columns
from align.data.examples import Example
from align.data.near_names import in_settings, may_be
from align.data.turns import chat_example, text_example


def implicit_row(columns: Columns) -> Example:
    """`chosen` and `rejected` share their beginning, which is the prompt (TRL's `extract_prompt`).

    Of the texts `Is it? Yes` and `Is it? No` the prompt is `Is it?`, and the answers are ` Yes` and ` No`. A `question`
    that is not part of that beginning is the user's message (Intel's Orca pairs). Any other column that may be meant as
    the prompt is no guess of ours: such a row is refused.

    Raises:
        RowError: there is no prompt, or a column that nobody reads may be it.
    """
    chosen = columns.get("chosen")
    conversations = [columns.answer("chosen", chosen), *columns.answers("rejected")]
    if isinstance(chosen, str):
        return _implicit_text(columns, conversations)
    if conversations[0] and conversations[0][0]["role"] == "assistant":
        if _question(columns) is not None:
            return _asked(columns, conversations)
        check_no_prompt_beside(columns, "")
    if all(other == conversations[0] for other in conversations[1:]):
        cut = len(conversations[0]) - 1  # an SFT conversation, or equal answers, which are told later
    else:
        cut = common_prefix(conversations)
    example = chat_example(columns, conversations[0][:cut], [one[cut:] for one in conversations])
    return replace(example, inferred=True)


def _implicit_text(columns: Columns, conversations: list[AnswerMessages]) -> Example:
    """The same where both are plain texts."""
    names = ["chosen", *["rejected"] * (len(conversations) - 1)]
    pairs = zip(names, conversations, strict=True)
    texts = [str(columns.single(name, one)["content"] or "") for name, one in pairs]
    if len(texts) > 1 and all(text == texts[0] for text in texts[1:]):
        raise columns.error("every rejected answer equals the chosen one.", reason=faults.ALL_EQUAL)
    cut = common_prefix(texts) if len(texts) > 1 else 0
    if cut and texts[0][cut - 1] == " ":  # the space belongs to the answer, as TRL has it
        cut -= 1
    common = texts[0][:cut]
    question = _question(columns)
    if question is not None and question.strip() not in common:
        return _asked(columns, conversations)
    check_no_prompt_beside(columns, common)
    if not common.strip():
        raise columns.error(
            "there is no prompt: chosen and rejected share no beginning; data.columns={prompt: …} names another "
            "column as the prompt.",
            reason=faults.MISSING,
        )
    answers = [[{"role": "assistant", "content": text[cut:]}] for text in texts]
    return replace(text_example(columns, common, answers), inferred=True)


def _asked(columns: Columns, answers: list[AnswerMessages]) -> Example:
    """A row whose `question` is the user's message."""
    return chat_example(columns, [{"role": "user", "content": columns.text("question")}], answers)


def _question(columns: Columns) -> str | None:
    """The column `question` where it holds text."""
    value = columns.values.get("question")
    return value if isinstance(value, str) and value.strip() else None


def check_no_prompt_beside(columns: Columns, common: str) -> None:
    """Refuses a row whose prompt would be guessed while a column stands there that may be meant as the prompt.

    Args:
        columns: of the row.
        common: what its answers begin with in common; a column whose text is part of that hides nothing.

    Raises:
        RowError: names that column and how it is read.
    """
    begin = f"what chosen and rejected begin with in common ({reprlib.repr(common)})"
    lost = f"the prompt would be {begin}" if common.strip() else "there is no other prompt"
    for name, value in columns.values.items():
        if not may_be(name, "prompt") or not _may_ask(value):
            continue
        if isinstance(value, str) and value.strip() in common:
            continue
        named = in_settings(name)
        raise columns.error(
            f"column {named} is not read, and {lost}: data.columns={{prompt: {named}}} reads it as the prompt, "
            f"data.columns={{{named}: null}} leaves it out.",
            reason=faults.MISSING,
        )
    if "prompt" in columns.nulls:
        raise columns.error(
            f"column prompt is null, and {lost}: give the prompt, or say with data.columns={{prompt: null}} that the "
            "answers hold it.",
            reason=faults.MISSING,
        )


def _may_ask(value: Any) -> bool:
    """Whether a value is text or messages."""
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)


def common_prefix(sequences: Iterable[Any]) -> int:
    """How many leading items all sequences share: 2 of `abc` and `abd`."""
    length = 0
    for items in zip(*sequences, strict=False):
        if any(item != items[0] for item in items[1:]):
            break
        length += 1
    return length
