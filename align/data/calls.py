"""Calls of tools as templates want them: arguments that are objects, and what a template asks for beyond them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from align.core.errors import UserError

Chat = Sequence[Mapping[str, Any]]  # messages as a template receives them


def with_arguments(call: Any) -> Any:
    """A tool call whose arguments are an object: templates write it as JSON themselves."""
    if not isinstance(call, Mapping):
        raise UserError("a tool call must be an object with a function, its name and its arguments")
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": with_arguments(call["function"])}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        return {**call, "arguments": json.loads(arguments or "{}")}
    except (ValueError, RecursionError):
        return call


def unwritten(source: str, *, calls: bool, results: bool) -> str | None:
    """What of tools a row has and a template, by its source, does not know; None where it knows all of it.

    Args:
        source: of the template.
        calls: a message of the row calls tools.
        results: a message of the row is a tool's.
    """
    if calls and "tool_calls" not in source:
        return "tool calls"
    return "results of tools" if results and "tool" not in source else None


def filled_chats(chat: Chat) -> Iterator[Chat]:
    """A conversation with what a template that refuses it may miss; none where tools are neither called nor answer.

    First with an empty content where a message that calls tools has none, which some templates join to other text.
    Then also with an id of nine digits for each call and its result, as Mistral's templates want them: ids from
    elsewhere (`call_a1B2…`) are longer, and rows that were collected without a server have none.
    """
    if not any(message.get("tool_calls") or message["role"] == "tool" for message in chat):
        return
    filled = [{**message, "content": message.get("content") or ""} for message in chat]
    if any(message.get("content") is None for message in chat):
        yield filled
    yield _with_ids(filled)


def _with_ids(chat: Chat) -> Chat:
    """The conversation with calls counted; a result without an id that a call has answers the first open call."""
    numbered: list[dict[str, Any]] = []
    known: dict[str, str] = {}  # the row's own id → ours
    waiting: list[str] = []  # ours, of calls without a result
    count = 0
    for message in chat:
        own = dict(message)
        if own.get("tool_calls"):
            calls = []
            for call in own["tool_calls"]:
                count += 1
                waiting.append(f"{count:09}")
                if isinstance(call, Mapping) and call.get("id"):
                    known[str(call["id"])] = waiting[-1]
                calls.append({"type": "function", **call, "id": waiting[-1]})
            own["tool_calls"] = calls
        elif own["role"] == "tool":
            answered = known.get(str(own.get("tool_call_id"))) or (waiting[0] if waiting else f"{count:09}")
            waiting = [one for one in waiting if one != answered]
            own["tool_call_id"] = answered
        numbered.append(own)
    return numbered
