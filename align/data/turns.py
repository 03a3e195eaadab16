"""Prompt and answers of one raw row as an `Example`: the parts that several layouts share."""

from __future__ import annotations

from align.data import faults
from align.data.columns import AnswerMessages, Columns, Message
from align.data.examples import Example, Turn


def chat_example(columns: Columns, prompt: list[Message], answers: list[AnswerMessages]) -> Example:
    """A row of chat messages; the prompt must end with the user's."""
    if not prompt or prompt[-1]["role"] != "user":
        raise columns.error("the prompt must end with a user's message.", reason=faults.MESSAGES)
    if not prompt[-1]["content"].strip():
        raise columns.error("the user's last message is empty.", reason=faults.EMPTY)
    system = columns.optional_text("system")
    if system is not None and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": system}, *prompt]
    return Example(columns.source, turns_of(columns, answers), messages=tuple(prompt))


def text_example(columns: Columns, prompt: str, answers: list[AnswerMessages]) -> Example:
    """A row whose prompt is text as it stands."""
    turns = turns_of(columns, answers)
    return Example(columns.source, turns, text=prompt, system=columns.optional_text("system"))


def turns_of(columns: Columns, answers: list[AnswerMessages]) -> tuple[Turn, ...]:
    """The turns of answers that share their later questions.

    The chosen `assistant: A, user: and then?, assistant: B` beside the rejected `assistant: C, user: and
    then?, assistant: D` makes two turns: A against C, and to the question `and then?` B against D.

    Args:
        columns: the row, for messages to people.
        answers: each as messages, the chosen one first.
    """
    for i, answer in enumerate(answers):
        _check_answer(columns, "chosen" if i == 0 else "rejected", answer)
        if answer[1::2] != answers[0][1::2]:
            raise columns.error(
                "chosen and rejected must have the same later questions.", reason=faults.MESSAGES
            )
    short = columns.optional_text("short_prompt")
    if short is not None and len(answers[0]) > 1:
        raise columns.error("a row of several turns takes short_prompts beside context and questions.")
    turns = []
    for place in range(0, len(answers[0]), 2):
        question = answers[0][place - 1]["content"] if place else None
        chosen, *rejected = (answer[place]["content"] for answer in answers)
        turns.append(Turn(question, chosen, tuple(rejected), short))
    return tuple(turns)


def _check_answer(columns: Columns, name: str, answer: AnswerMessages) -> None:
    """Refuses an answer that is not assistant, user, assistant, … to the assistant, or that has an empty message."""
    expected = ["user" if place % 2 else "assistant" for place in range(len(answer))]
    if [message["role"] for message in answer] != expected or len(answer) % 2 == 0:
        raise columns.error(
            f"column {name} must start and end with an assistant's message, in turns.",
            reason=faults.MESSAGES,
        )
    if not all(message["content"].strip() for message in answer):
        raise columns.empty(name, "has an empty answer")


def without_equal(turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], int]:
    """The turns without the rejected answers that equal the chosen one in every turn, and how many those are."""
    kept = [
        j
        for j in range(len(turns[0].rejected))
        if any(turn.rejected[j].strip() != turn.chosen.strip() for turn in turns)
    ]
    dropped = len(turns[0].rejected) - len(kept)
    if not dropped:
        return turns, 0
    return tuple(
        Turn(turn.question, turn.chosen, tuple(turn.rejected[j] for j in kept), turn.short_prompt)
        for turn in turns
    ), dropped
