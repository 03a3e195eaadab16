"""Checked access to a raw row's columns: what is wrong is told with the row and the column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from align.core.errors import UserError
from align.data.messages import CALLING, Message, called_function, kept_fields, tools_of

# What follows a prompt: an answer, or answers with the user's questions between them.
AnswerMessages = list[Message]

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    CALLING: "assistant",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
}


class Columns:
    """One raw row; columns that are null count as absent.

    Args:
        source: where the row stands, before every complaint: `train.jsonl:17: column chosen is empty.`
        values: column → value.
    """

    def __init__(self, source: str, values: Mapping[str, Any]) -> None:
        self.source = source
        self.values = {name: value for name, value in values.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def error(self, message: str) -> UserError:
        """`message` with the row's place before it, to be raised."""
        return UserError(f"{self.source}: {message}")

    def no_rejected(self) -> UserError:
        """The complaint about a row that compares nothing."""
        return self.error(
            "no rejected answer: preference methods need one; rows for SFT take method=sft (in `align inspect` "
            "require_rejected=false)."
        )

    def wrong_type(self, name: str, wanted: str) -> UserError:
        """The complaint about a column of the wrong type."""
        kind = type(self.values[name]).__name__
        return self.error(f"column {name} must be {wanted}, not {kind}.")

    def get(self, *names: str) -> Any:
        """The first column of `names` that is there; errors as `first`."""
        return self.values[self.first(*names)]

    def first(self, *names: str) -> str:
        """The name of the first column of `names` that is there.

        Raises:
            UserError: none is there.
        """
        for name in names:
            if name in self.values:
                return name
        raise self.error(f"column {' or '.join(names)} is missing.")

    def text(self, name: str) -> str:
        """A column that holds text that is not blank."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self.wrong_type(name, "a string")
        if not value.strip():
            raise self.error(f"column {name} is empty.")
        return value

    def optional_text(self, name: str) -> str | None:
        """As `text`; None where the column is absent."""
        return self.text(name) if name in self else None

    def texts(self, name: str) -> list[str]:
        """A column that holds a list of texts that are not blank."""
        values = self.get(name)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.wrong_type(name, "a list of strings")
        if not values or not all(value.strip() for value in values):
            raise self.error(f"column {name} has an empty entry.")
        return values

    def chunks(self, name: str) -> tuple[str, ...]:
        """A context: text, or a list of texts of which blank ones are left out."""
        values = self.get(name)
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.wrong_type(name, "a string or a list of strings")
        kept = tuple(value for value in values if value.strip())
        if not kept:
            raise self.error(f"column {name} is empty.")
        return kept

    def conversation(self, name: str) -> list[Message]:
        """A column that holds chat messages, in {role, content} or {from, value} form."""
        value = self.get(name)
        if not isinstance(value, list) or not value:
            raise self.wrong_type(name, "a list of messages")
        return [self.message(name, item) for item in value]

    def message(self, name: str, value: Any) -> Message:
        """One chat message of the column `name`."""
        if not isinstance(value, Mapping):
            raise self.error(f"column {name} must hold messages with role and content, not {value!r:.40}.")
        role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
        if role not in ROLES:
            raise self.error(f"column {name} has a message of the unknown role {role!r}.")
        fields = kept_fields(value)
        if role == CALLING and isinstance(content, str):
            fields, content = {"tool_calls": self._told(lambda: called_function(str(content)))}, None
        if content is None and ROLES[role] == "assistant" and fields:
            return {"role": ROLES[role], "content": None, **fields}
        if not isinstance(content, str):
            kind = type(content).__name__
            raise self.error(f"column {name} has a message whose content is no string but {kind}.")
        return {"role": ROLES[role], "content": content, **fields}

    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """The column tools: functions that the assistant may call; empty where it is absent."""
        return self._told(lambda: tools_of(self.values["tools"])) if "tools" in self else ()

    def _told(self, read: Callable[[], Any]) -> Any:
        """What `read` gives; its complaint names the row."""
        try:
            return read()
        except UserError as error:
            raise self.error(str(error)) from error

    def answer(self, name: str, value: Any) -> AnswerMessages:
        """An answer as messages: text, one message, or a list of messages."""
        if isinstance(value, str):
            return [{"role": "assistant", "content": value}]
        if isinstance(value, Mapping):
            return [self.message(name, value)]
        if isinstance(value, list) and value:
            return [self.message(name, item) for item in value]
        raise self.error(
            f"column {name} must hold an answer as a string or messages, not {type(value).__name__}."
        )

    def answers(self, name: str) -> list[AnswerMessages]:
        """A column that holds one answer or a list of answers; an absent one holds none.

        A list of texts or of lists is several answers: `["no", "perhaps"]` is two. A list of messages is one answer,
        except where all of several messages are the assistant's, which no conversation has.
        """
        if name not in self:
            return []
        value = self.values[name]
        if not isinstance(value, list):
            return [self.answer(name, value)]
        if not all(isinstance(item, Mapping) for item in value):
            return [self.answer(name, item) for item in value]
        messages = [self.message(name, item) for item in value]
        if all(message["role"] == "assistant" for message in messages):
            return [[message] for message in messages]
        return [messages] if messages else []

    def single(self, name: str, answer: AnswerMessages) -> str:
        """The text of an answer of the column `name` that is one assistant's message.

        Raises:
            UserError: it holds several messages, or an empty one.
        """
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            raise self.error(f"column {name} must hold one assistant's answer here.")
        if not (answer[0]["content"] or "").strip():
            raise self.error(f"column {name} has an empty answer.")
        return str(answer[0]["content"])


def common_prefix(sequences: Iterable[Any]) -> int:
    """How many leading items all sequences share: 2 of `abc` and `abd`."""
    length = 0
    for items in zip(*sequences, strict=False):
        if any(item != items[0] for item in items[1:]):
            break
        length += 1
    return length
