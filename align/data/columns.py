"""Checked access to a raw row's columns: what is wrong is told with the row and the column."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from align.core.errors import UserError
from align.data import faults
from align.data.contents import as_text, filled, joined_parts, kind, part_kinds
from align.data.faults import RowError
from align.data.messages import (
    CALLING,
    UNTRAINED,
    Message,
    called_function,
    kept_fields,
    tools_of,
    untrained,
    variables_of,
)

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
    """One raw row; columns that are null count as absent, and bytes that are UTF-8 as text.

    Args:
        source: where the row stands, before every complaint: `train.jsonl:17: column chosen is empty.`
        values: column → value.
        reason: by which complaints are counted that name no other (faults.py).
    """

    def __init__(self, source: str, values: Mapping[str, Any], *, reason: str = faults.OTHER) -> None:
        self.source = source
        self.reason = reason
        self.values = {name: as_text(value) for name, value in values.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def error(self, message: str, *, reason: str | None = None) -> RowError:
        """`message` with the row's place before it, to be raised."""
        return RowError(self.source, message, reason=reason or self.reason)

    def no_rejected(self) -> RowError:
        """The complaint about a row that compares nothing."""
        return self.error(
            "no rejected answer: preference methods need one; rows for SFT take method=sft (in `align inspect` "
            "require_rejected=false).",
            reason=faults.NO_REJECTED,
        )

    def wrong_type(self, name: str, wanted: str) -> RowError:
        """The complaint about a column of the wrong type."""
        return self.error(
            f"column {name} must be {wanted}, not {kind(self.values[name])}.", reason=faults.WRONG_TYPE
        )

    def empty(self, name: str, what: str = "is empty") -> RowError:
        """The complaint about a column that holds nothing."""
        return self.error(f"column {name} {what}.", reason=faults.EMPTY)

    def get(self, *names: str) -> Any:
        """The first column of `names` that is there; errors as `first`."""
        return self.values[self.first(*names)]

    def first(self, *names: str) -> str:
        """The name of the first column of `names` that is there.

        Raises:
            RowError: none is there.
        """
        for name in names:
            if name in self.values:
                return name
        raise self.error(f"column {' or '.join(names)} is missing.", reason=faults.MISSING)

    def text(self, name: str) -> str:
        """A column that holds text that is not blank."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self.wrong_type(name, "a string")
        if not value.strip():
            raise self.empty(name)
        return value

    def optional_text(self, name: str) -> str | None:
        """As `text`; None where the column is absent or blank."""
        value = self.values.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        return self.text(name)

    def texts(self, name: str) -> list[str]:
        """A column that holds a list of texts that are not blank; nulls at its end are padding."""
        values = self.get(name)
        values = [as_text(value) for value in unpadded(values)] if isinstance(values, list) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.wrong_type(name, "a list of strings")
        if not values or not all(value.strip() for value in values):
            raise self.empty(name, "has an empty entry")
        return values

    def chunks(self, name: str) -> tuple[str, ...]:
        """A context: text, or a list of texts of which blank ones and nulls are left out."""
        values = self.get(name)
        values = [values] if isinstance(values, str) else values
        if isinstance(values, list):
            values = [as_text(value) for value in values if value is not None]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.wrong_type(name, "a string or a list of strings")
        kept = tuple(value for value in values if value.strip())
        if not kept:
            raise self.empty(name)
        return kept

    def conversation(self, name: str) -> list[Message]:
        """A column that holds chat messages, in {role, content} or {from, value} form."""
        value = self.get(name)
        if isinstance(value, list):
            value = [item for item in value if item is not None]
        if not isinstance(value, list) or not value:
            raise self.wrong_type(name, "a list of messages")
        return [self.message(name, item) for item in value]

    def message(self, name: str, value: Any) -> Message:
        """One chat message of the column `name`; keys that are null count as absent."""
        if not isinstance(value, Mapping):
            shown = f"{reprlib.repr(value):.40}"
            raise self.error(
                f"column {name} must hold messages with role and content, not {shown}.",
                reason=faults.WRONG_TYPE,
            )
        role = as_text(filled(value, "role", "from"))
        if not isinstance(role, str) or role not in ROLES:
            raise self.error(
                f"column {name} has a message of the unknown role {reprlib.repr(role)}.",
                reason=faults.MESSAGES,
            )
        content, fields = filled(value, "content", "value"), self._told(lambda: kept_fields(value))
        if role == CALLING and isinstance(as_text(content), str):
            fields, content = {"tool_calls": self._told(lambda: called_function(as_text(content)))}, None
        said = None
        if content is not None or ROLES[role] != "assistant" or not fields:
            said = self.content(name, content)
        left_out = untrained(value) if ROLES[role] == "assistant" else {}
        return {"role": ROLES[role], "content": said, **fields, **left_out}

    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """The column tools: functions that the assistant may call; empty where it is absent."""
        return self._told(lambda: tools_of(self.values["tools"])) if "tools" in self else ()

    def template_kwargs(self) -> Mapping[str, Any]:
        """The column chat_template_kwargs, TRL's: variables of the chat template; empty where it is absent."""
        return self._told(lambda: variables_of(self.values.get("chat_template_kwargs")))

    def _told(self, read: Callable[[], Any]) -> Any:
        """What `read` gives; its complaint names the row."""
        try:
            return read()
        except UserError as error:
            raise self.error(str(error), reason=faults.MESSAGES) from error

    def content(self, name: str, value: Any) -> str:
        """A message's content: text, or a list of text parts, which are joined."""
        text = joined_parts(value) if isinstance(value, list) else as_text(value)
        if isinstance(text, str):
            return text
        if isinstance(value, list):
            raise self.error(
                f"column {name} has a message with parts that are no text ({part_kinds(value)}): only text is read.",
                reason=faults.NOT_TEXT,
            )
        raise self.error(
            f"column {name} has a message whose content is no string but {kind(value)}.",
            reason=faults.WRONG_TYPE,
        )

    def answer(self, name: str, value: Any) -> AnswerMessages:
        """An answer as messages: text, one message, or a list of messages."""
        value = as_text(value)
        if isinstance(value, str):
            return [{"role": "assistant", "content": value}]
        if isinstance(value, Mapping):
            return [self.message(name, value)]
        messages = [item for item in value if item is not None] if isinstance(value, list) else []
        if messages:
            return [self.message(name, item) for item in messages]
        raise self.error(
            f"column {name} must hold an answer as a string or messages, not {kind(value)}.",
            reason=faults.WRONG_TYPE,
        )

    def answers(self, name: str) -> list[AnswerMessages]:
        """A column that holds one answer or a list of answers; an absent one holds none, and nulls are padding.

        A list of texts or of lists is several answers: `["no", "perhaps"]` is two. A list of messages is one answer,
        except where all of several messages are the assistant's, which no conversation has.
        """
        if name not in self:
            return []
        value = self.values[name]
        if not isinstance(value, list):
            return [self.answer(name, value)]
        value = [item for item in value if item is not None]
        if not all(isinstance(item, Mapping) for item in value):
            return [self.answer(name, item) for item in value]
        messages = [self.message(name, item) for item in value]
        if all(message["role"] == "assistant" for message in messages):
            return [[message] for message in messages]
        return [messages] if messages else []

    def single(self, name: str, answer: AnswerMessages) -> Message:
        """The one assistant's message that an answer of the column `name` is.

        Raises:
            RowError: it holds several messages, or an empty one that calls no tools.
        """
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            raise self.error(f"column {name} must hold one assistant's answer here.", reason=faults.MESSAGES)
        if not (answer[0]["content"] or "").strip() and not answer[0].get("tool_calls"):
            raise self.empty(name, "has an empty answer")
        self.check_trained(name, answer[0])
        return answer[0]

    def check_trained(self, name: str, answer: Message) -> None:
        """Refuses an answer that its file says is not to be trained on."""
        if UNTRAINED in answer:
            raise self.error(
                f"column {name} has an answer that is not to be trained on ({answer[UNTRAINED]}), which every answer "
                "here is: put it into the prompt, or leave the row out.",
                reason=faults.BAD_LABEL,
            )


def unpadded(values: list[Any]) -> list[Any]:
    """A list without the nulls at its end: of `[1, null, 2, null]` the first three."""
    length = len(values)
    while length and values[length - 1] is None:
        length -= 1
    return values[:length]


def common_prefix(sequences: Iterable[Any]) -> int:
    """How many leading items all sequences share: 2 of `abc` and `abd`."""
    length = 0
    for items in zip(*sequences, strict=False):
        if any(item != items[0] for item in items[1:]):
            break
        length += 1
    return length
