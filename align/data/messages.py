"""Chat messages of a raw row beyond role and content: tool calls and their results, reasoning in a field, tools."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from align.core.errors import UserError
from align.data.template_file import check_template_kwargs

Message = dict[str, Any]  # {"role": …, "content": …} and what else the template is given

# Keys of a message that templates read. Others are left out: a template's text must not depend on a row's id.
KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking", "reasoning")
CALLING = "function_call"  # ShareGPT's role of a message whose value is a call as JSON


# Of an assistant's message that is not to be trained on, why; an answer that has it is refused.
UNTRAINED = "untrained"
# Keys by which files say so, with 0 or false: OpenAI's and Mistral's, axolotl's.
_WEIGHTS = ("weight", "training", "train")


def untrained(value: Mapping[str, Any]) -> Message:
    """`{UNTRAINED: "weight is 0"}` where a raw message has a weight other than 1; else nothing."""
    for name in _WEIGHTS:
        if value.get(name) not in (None, 1):
            return {UNTRAINED: f"{name} is {reprlib.repr(value[name])}"}
    return {}


def kept_fields(value: Mapping[str, Any]) -> Message:
    """What a raw message has beside role and content and a template may read; null and empty is as absent.

    OpenAI's older `function_call` is a tool call.

    Raises:
        UserError: such a call has no name, or stands beside `tool_calls`.
    """
    kept = {name: _without_null(value[name]) for name in KEPT if value.get(name) not in (None, "", [], {})}
    call = _without_null(value.get(CALLING))
    if not call:
        return kept
    if "tool_calls" in kept:
        raise UserError(f"a message has both {CALLING} and tool_calls: keep one.")
    return kept | {"tool_calls": called_function(call if isinstance(call, str) else json.dumps(call))}


def called_function(text: str) -> list[dict[str, Any]]:
    """ShareGPT's `{"name": "f", "arguments": {}}`, one call or a list of them, as `tool_calls`.

    Raises:
        UserError: it is no such JSON.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(
        isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls
    ):
        raise UserError(f"a {CALLING} message must be JSON with name and arguments.")
    return [{"type": "function", "function": dict(call)} for call in calls]


def tools_of(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The column `tools`: JSON schemas as a list, or as the JSON text of one.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            raise UserError("column tools is text, and no JSON.") from None
    tools = [value] if isinstance(value, Mapping) else value
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError("column tools must be a list of JSON schemas of functions.")
    return tuple(_without_null(tool) for tool in tools)


def variables_of(value: Any) -> Mapping[str, Any]:
    """The column `chat_template_kwargs`: an object, or the JSON text of one; keys that are null are absent.

    Raises:
        UserError: it is neither, or holds what a rendering is given anyway.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError):
            raise UserError("column chat_template_kwargs is text, and no JSON.") from None
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise UserError('column chat_template_kwargs must be an object, like {"enable_thinking": false}.')
    check_template_kwargs("column chat_template_kwargs", value)
    variables: Mapping[str, Any] = _without_null(value)
    return variables


def _without_null(value: Any) -> Any:
    """The value without keys that are null, with which Arrow fills schemas that differ."""
    if isinstance(value, Mapping):
        return {name: _without_null(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_null(item) for item in value]
    return value


class Turns(NamedTuple):
    """An answer that goes over several turns, taken apart.

    Attributes:
        answers: the assistant's messages.
        between: what stands before each of them but the first: the user's question, or results of its tool calls.
        dropped: messages after the last answer, to which there is none; they are left out.
    """

    answers: list[Message]
    between: list[list[Message]]
    dropped: int


def turns_of_answer(answer: Sequence[Message]) -> Turns | None:
    """Assistant, user, assistant, … taken apart; None where two answers or two questions follow each other."""
    last = max((i for i, message in enumerate(answer) if message["role"] == "assistant"), default=-1)
    kept = answer[: last + 1]
    answers: list[Message] = []
    between: list[list[Message]] = []
    at = 0
    while at < len(kept):
        stop = next(i for i in range(at, len(kept)) if kept[i]["role"] == "assistant")
        asked = list(kept[at:stop])
        users = sum(message["role"] == "user" for message in asked)
        if bool(asked) != bool(answers) or users > 1 or any(m["role"] == "system" for m in asked):
            return None
        between += [asked] if asked else []
        answers.append(kept[stop])
        at = stop + 1
    return Turns(answers, between, len(answer) - len(kept)) if answers else None
