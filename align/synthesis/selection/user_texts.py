"""Rows in which what the user wrote can be told from the template around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from align.data.examples import Example, TokenizedExample, Turn
from align.data.settings import DataSettings
from align.data.template import Kind, Message
from align.data.tokens import ExampleTokenizer


class UserTexts(ExampleTokenizer):
    """Tokenises rows so that `chunk_spans` are what the user wrote: every one of their messages, the template left out.

    Of `<|im_start|>user⏎Why?<|im_end|>⏎…` it is the tokens of `Why?`.
    """

    def _messages(self, example: Example) -> list[Message]:
        return [_as_context(one) for one in super()._messages(example)]


def _as_context(message: Message) -> Message:
    """A user's message whose contents count as context, anybody else's without any."""
    kind: Kind = "chunk" if message.role == "user" else "text"
    fragments = (
        fragment if fragment.kind == "template" else replace(fragment, kind=kind)
        for fragment in message.fragments
    )
    return replace(message, fragments=tuple(fragments))


def turns_apart(example: Example, settings: DataSettings) -> list[Example]:
    """Each turn of a row as a row of its own, whose prompt holds the turns before it with their chosen answers.

    Args:
        example: a row.
        settings: group `data`; of a context and a first question its template makes a message.
    """
    if len(example.turns) == 1:
        return [example]
    history: list[Mapping[str, Any]] = [*example.messages] or [_user(_first_request(example, settings))]
    apart = []
    for place, turn in enumerate(example.turns):
        if place:
            history = [*history, *(turn.asked or [_user(turn.question or "")])]
        alone = replace(turn, question=None, asked=(), short_prompt=None)
        apart.append(replace(example, messages=tuple(history), text=None, chunks=(), turns=(alone,)))
        history = [*history, _said(turn)]
    return apart


def tokenized_turns(example: Example, tokenize: UserTexts) -> list[TokenizedExample]:
    """The turns of a row as a model sees them, one after the other."""
    return [tokenize(turn) for turn in turns_apart(example, tokenize.settings)]


def _first_request(example: Example, settings: DataSettings) -> str:
    if example.text is not None:
        return example.text
    context = settings.chunk_separator.join(example.chunks)
    before, after = settings.template.split("{context}")
    question = example.turns[0].question or ""
    return before.replace("{question}", question) + context + after.replace("{question}", question)


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _said(turn: Turn) -> Mapping[str, Any]:
    return {"role": "assistant", "content": turn.chosen, **(turn.fields[0] if turn.fields else {})}
