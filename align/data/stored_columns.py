"""Columns of a raw row that were stored as text: conversations, and in tables lists of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.data import faults
from align.data.columns import ROLES, Columns
from align.data.contents import Cell, begins_like_messages, filled, printed_list, stored_messages

_PROMPTS = ("conversations", "prompt", "messages")  # the first that is there is the row's prompt
_ANSWERS = ("chosen", "rejected", "completion")
_LISTS = ("context", "questions", "chosens", "rejecteds", "short_prompts", "history")


def read_stored(columns: Columns) -> None:
    """Puts conversations in the place of texts that hold them, and lists in the place of fields that print them.

    An answer is read as messages where the prompt is a conversation too, or where it is one itself, from the user's
    message on: beside a prompt of plain text the answer `{"role": "assistant", "content": "hi"}` is a piece of JSON. In
    tables, which have no lists, a list of messages is one; `rejected` may be a printed list beside a `chosen` that is
    none.

    Raises:
        RowError: a table's field was printed as nobody can read it.
    """
    values = columns.values
    for name in _PROMPTS:
        if isinstance(value := values.get(name), str):
            values[name] = _messages(columns, name, value, beside_chat=True)
    prompt = next((values[name] for name in _PROMPTS if name in values and "context" not in values), "")
    _read_lists(columns)
    for name in _ANSWERS:
        value, beside_chat = values.get(name), not isinstance(prompt, str)
        if isinstance(value, str):
            values[name] = _messages(columns, name, value, beside_chat=beside_chat)
        elif isinstance(value, list) and isinstance(next(iter(value), None), str):
            values[name] = [
                _messages(columns, name, one, beside_chat=beside_chat) if isinstance(one, str) else one
                for one in value
            ]
    for name, value in values.items():
        if isinstance(value, Cell):
            values[name] = str(value)


def _messages(columns: Columns, name: str, text: str, *, beside_chat: bool) -> Any:
    """The messages that a text holds, or the text."""
    messages = stored_messages(text)
    if messages is None:
        if isinstance(text, Cell) and begins_like_messages(text):
            raise _unreadable(columns, name, "a list of messages")
        return text
    first = messages[0] if isinstance(messages, list) else messages
    role = filled(first, "role", "from") if isinstance(first, Mapping) else None
    asks = isinstance(messages, list) and isinstance(role, str) and ROLES.get(role) != "assistant"
    return messages if beside_chat or asks or isinstance(text, Cell) else text


def _read_lists(columns: Columns) -> None:
    """Lists in the place of a table's fields."""
    values = columns.values
    listed = {name: _is_list(values[name]) for name in ("chosen", "completion") if name in values}
    names = _LISTS if any(listed.values()) else (*_LISTS, "rejected")
    for name in names:
        if isinstance(value := values.get(name), Cell):
            try:
                values[name] = printed_list(value) or value
            except ValueError as error:
                raise _unreadable(columns, name, "a list of texts") from error


def _is_list(value: Any) -> bool:
    """Whether an answer is itself a printed list, however printed."""
    try:
        return isinstance(value, Cell) and printed_list(value) is not None
    except ValueError:
        return True


def _unreadable(columns: Columns, name: str, what: str) -> Exception:
    return columns.error(
        f"column {name} begins like {what} and was printed neither as JSON nor by Python (numpy leaves out commas): "
        "save the rows as Parquet or JSON Lines.",
        reason=faults.WRONG_TYPE,
    )
