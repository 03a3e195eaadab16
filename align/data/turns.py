"""Prompt and answers of one raw row as an `Example`: the parts that several layouts share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from align.data import faults
from align.data.columns import AnswerMessages, Columns, Message
from align.data.examples import Example, Turn
from align.data.messages import UNTRAINED, Turns, turns_of_answer


def chat_example(columns: Columns, prompt: list[Message], answers: list[AnswerMessages]) -> Example:
    """A row of chat messages; the prompt must end with the user's, or with a tool's result."""
    if not prompt or prompt[-1]["role"] not in ("user", "tool"):
        raise columns.error("the prompt must end with a user's message.", reason=faults.MESSAGES)
    if prompt[-1]["role"] == "user" and not prompt[-1]["content"].strip():
        raise columns.error("the user's last message is empty.", reason=faults.EMPTY)
    prompt = [{name: item for name, item in one.items() if name != UNTRAINED} for one in prompt]
    prompt = _with_system(columns, prompt)
    turns, dropped = turns_of(columns, answers)
    return Example(columns.source, turns, messages=tuple(prompt), dropped_messages=dropped)


def _with_system(columns: Columns, prompt: list[Message]) -> list[Message]:
    """The prompt after the column system; refuses one that differs from the prompt's own system message."""
    system = columns.optional_text("system")
    if system is None:
        return prompt
    if prompt[0]["role"] != "system":
        return [{"role": "system", "content": system}, *prompt]
    if prompt[0]["content"].strip() != system.strip():
        raise columns.error(
            "column system differs from the system message of the prompt, and only one is read: hide the column with "
            "data.columns={system: null}, or leave out the message.",
            reason=faults.MESSAGES,
        )
    return prompt


def text_example(columns: Columns, prompt: str, answers: list[AnswerMessages]) -> Example:
    """A row whose prompt is text as it stands."""
    turns, dropped = turns_of(columns, answers)
    system = columns.optional_text("system")
    return Example(columns.source, turns, text=prompt, system=system, dropped_messages=dropped)


def turns_of(columns: Columns, answers: list[AnswerMessages]) -> tuple[tuple[Turn, ...], int]:
    """The turns of answers that share their later questions, and how many messages after the last answer are left out.

    The chosen `assistant: A, user: and then?, assistant: B` beside the rejected `assistant: C, user: and
    then?, assistant: D` makes two turns: A against C, and to the question `and then?` B against D.

    Args:
        columns: the row, for messages to people.
        answers: each as messages, the chosen one first.
    """
    own = "completion" if "completion" in columns and "chosen" not in columns else "chosen"
    parted = [_parted(columns, "rejected" if i else own, answer) for i, answer in enumerate(answers)]
    between = parted[0].between
    if any(one.between != between for one in parted):
        raise columns.error("chosen and rejected must have the same later questions.", reason=faults.MESSAGES)
    short = columns.optional_text("short_prompt")
    if short is not None and between:
        raise columns.error("a row of several turns takes short_prompts beside context and questions.")
    turns = []
    for place, said in enumerate(zip(*(one.answers for one in parted), strict=True)):
        asked = between[place - 1] if place else []
        turn = turn_of(said, question=asked[-1]["content"] if asked else None, short_prompt=short)
        alone = [one["role"] for one in asked] in ([], ["user"])
        turns.append(turn if alone else replace(turn, asked=tuple(asked)))
    return tuple(turns), sum(one.dropped for one in parted)


def turn_of(said: Sequence[Message], *, question: str | None, short_prompt: str | None) -> Turn:
    """A turn of the assistant's messages, the chosen one first, with all that they have beside their text."""
    chosen, *rejected = (str(one["content"] or "") for one in said)
    return Turn(question, chosen, tuple(rejected), short_prompt, fields=_fields(said))


def _parted(columns: Columns, name: str, answer: AnswerMessages) -> Turns:
    """An answer's turns; refuses one that is not assistant, user, assistant, …, or that has an empty message."""
    turns = turns_of_answer(answer)
    if turns is None:
        raise columns.error(
            f"column {name} must start and end with an assistant's message, in turns.",
            reason=faults.MESSAGES,
        )
    for one in turns.answers:
        columns.check_trained(name, one)
    if not all((one["content"] or "").strip() or one.get("tool_calls") for one in turns.answers):
        raise columns.empty(name, "has an empty answer")
    return turns


def _fields(said: Sequence[Message]) -> tuple[Message, ...]:
    """See `Turn.fields`."""
    fields = tuple(
        {name: item for name, item in one.items() if name not in ("role", "content")} for one in said
    )
    return fields if any(fields) else ()


def without_equal(turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], list[int]]:
    """The turns without the rejected answers that equal the chosen one in every turn, and which remain, from 0."""
    kept = [j for j in range(len(turns[0].rejected)) if any(not turn.rejects_the_same(j) for turn in turns)]
    whole = len(kept) == len(turns[0].rejected)
    return (turns if whole else tuple(turn.with_rejected(kept) for turn in turns)), kept
