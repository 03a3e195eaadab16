"""The messages of an `Example` as the template is given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.data.examples import Example, Turn
from align.data.template import Fragment, Kind, Message, text_message


def bare_messages(example: Example) -> list[Message]:
    """Chat messages of which the longest user message is the context; all after it counts as the question."""
    users = [i for i, message in enumerate(example.messages) if message["role"] == "user"]
    longest = max(users, key=lambda i: len(example.messages[i]["content"]), default=-1)
    messages = []
    for i, message in enumerate(example.messages):
        kind: Kind = "text" if i != longest else "bare" if i == len(example.messages) - 1 else "chunk"
        messages.append(_message(message, kind))
    return messages


def _message(message: Mapping[str, Any], kind: Kind) -> Message:
    content = message.get("content")
    fragments = () if content is None else (Fragment(content, kind),)
    fields = {name: value for name, value in message.items() if name not in ("role", "content")}
    return Message(message["role"], fragments, fields)


def asked(turn: Turn) -> list[Message]:
    """What stands before the answers of a later turn."""
    if turn.asked:
        return [_message(message, "text") for message in turn.asked]
    return [text_message("user", turn.question or "")]


def answer_messages(turn: Turn) -> list[Message]:
    """The answers of a turn, the chosen one first; one that only calls tools has no content."""
    texts = (turn.chosen, *turn.rejected)
    fields: Sequence[Mapping[str, Any]] = turn.fields or [{}] * len(texts)
    return [
        text_message("assistant", text, own) if text or not own else Message("assistant", (), own)
        for text, own in zip(texts, fields, strict=True)
    ]
