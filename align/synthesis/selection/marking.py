"""A mark behind what the user wrote, in a row of any layout."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from align.core.errors import UserError
from align.data.columns import ROLES
from align.data.contents import filled
from align.data.examples import Example
from align.data.formats import parse_row
from align.data.instruction_rows import RENDERED
from align.data.sources import RawRow

_QUESTIONS = ("question", "query")  # beside a context: ours, LongReward's
_CONVERSATIONS = ("messages", "conversations")
_ANSWERS = ("chosen", "rejected", "completion")


def marked(row: dict[str, Any], *, source: str, turns: Collection[int], mark: str) -> dict[str, Any]:
    """The row, in place, with the mark and a space before it behind the user's text of each of these turns.

    `{"prompt": "Who wrote it?", …}` becomes `{"prompt": "Who wrote it? [IND]", …}`.

    Args:
        row: as it stands in the file.
        source: where, for messages.
        turns: places from 0.
        mark: `[IND]`.

    Raises:
        UserError: a layout in which the mark has no one place.
    """
    before = parse_row(RawRow(0, source, row)).example
    rendered = before.text is not None and RENDERED.search(before.text)
    wanted = [f"{text} {mark}" if place in turns else text for place, text in enumerate(requests(before))]
    _mark(row, set(turns), len(before.turns), mark)
    if rendered or requests(parse_row(RawRow(0, source, row)).example) != wanted:
        raise UserError(
            f"{source}: select.mark has no place in a row of this layout: give prompt as messages, or messages alone."
        )
    return row


def requests(example: Example) -> list[str]:
    """What the user asks in each turn, without a context; empty where nobody but a tool speaks."""
    texts = []
    for place, turn in enumerate(example.turns):
        text = turn.question
        if text is None and turn.asked:
            text = next((one.get("content") for one in turn.asked if one["role"] == "user"), None)
        if text is None and place == 0:
            users = [one.get("content") for one in example.messages if one["role"] == "user"]
            text = example.text if example.text is not None else users[-1] if users else None
        texts.append(text or "")
    return texts


def _mark(row: dict[str, Any], turns: set[int], count: int, mark: str) -> None:
    """Every place of the row that says what the user asks."""
    questions = row.get("questions")
    if isinstance(questions, list):
        for place in turns:
            questions[place] = f"{questions[place]} {mark}"
        return
    for name in (*_CONVERSATIONS, *_ANSWERS):
        for conversation in _conversations(row.get(name)):
            _mark_turns(conversation, turns, count, mark)
    if 0 in turns:
        _mark_prompt(row, mark)


def _conversations(value: Any) -> list[list[dict[str, Any]]]:
    """A column's lists of messages: one, or of several rejected answers one each."""
    if not isinstance(value, list) or not value:
        return []
    if all(isinstance(one, dict) for one in value):
        return [value]
    return [one for one in value if isinstance(one, list) and all(isinstance(part, dict) for part in one)]


def _mark_turns(conversation: list[dict[str, Any]], turns: set[int], count: int, mark: str) -> None:
    """Marks the user's message before each answer of these turns, of which the last one of `count` is at the end."""
    answers = sum(_role(message) == "assistant" for message in conversation)
    turn, asked = count - answers, None
    for message in conversation:
        if _role(message) == "user":
            asked = message
        elif _role(message) == "assistant":
            if asked is not None and turn in turns:
                _append(asked, mark)
            turn, asked = turn + 1, None


def _mark_prompt(row: dict[str, Any], mark: str) -> None:
    """The first turn's request, where it is not part of a conversation that ends with an answer."""
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        _mark_last_user(prompt, mark)
    elif isinstance(prompt, str):
        row["prompt"] = f"{prompt} {mark}"
    elif "chosen" in row and any(name in row for name in _CONVERSATIONS):
        _mark_last_user(next(row[name] for name in _CONVERSATIONS if name in row), mark)
    elif isinstance(row.get("instruction"), str):
        name = "input" if row.get("input") else "instruction"
        row[name] = f"{row[name]} {mark}"
    else:
        for name in _QUESTIONS:
            if isinstance(row.get(name), str):
                row[name] = f"{row[name]} {mark}"
                return


def _mark_last_user(messages: Sequence[Any], mark: str) -> None:
    users = [one for one in messages if isinstance(one, dict) and _role(one) == "user"]
    if users and not str(filled(users[-1], "content", "value")).endswith(f" {mark}"):
        _append(users[-1], mark)


def _append(message: dict[str, Any], mark: str) -> None:
    name = "content" if message.get("content") is not None else "value"
    content = message[name]
    if isinstance(content, list):
        texts = [part for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if texts:
            texts[-1]["text"] += f" {mark}"
    else:
        message[name] = f"{content} {mark}"


def _role(message: dict[str, Any]) -> str:
    said = str(filled(message, "role", "from"))
    return ROLES.get(said, said)
