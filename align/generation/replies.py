"""What a server's reply says: its answer, or why there is none. Servers differ in all but the names of the keys."""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from align.generation.pool import RetryError

WHOLE = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "complete", "completed")
AT_THE_LIMIT = ("length", "max_tokens", "max_length", "model_length")
# Codes and types of errors that waiting does not mend, though servers send them as a rate limit.
OUT_OF_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated")


@dataclass(frozen=True)
class Reply:
    """An answer as the server gave it.

    Attributes:
        text: as sent.
        finish: see `Completion.finish`.
        tokens: generated ones by the server's count; None where it does not say.
    """

    text: str
    finish: Literal["stop", "length", "broken"]
    tokens: int | None


class ReplyError(Exception):
    """The reply is an error, whatever its HTTP status was.

    Args:
        status: of HTTP, or the code in the reply; None where it has none.
        reason: the server's words.
        kind: the server's code or type of the error.
    """

    def __init__(self, status: int | None, reason: str, kind: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.kind = kind


def read_reply(body: Any) -> Reply:
    """The first choice of a chat completion.

    Args:
        body: the reply's JSON.

    Raises:
        ReplyError: it is an error.
        RetryError: it is neither an answer nor an error, as an overloaded proxy sends.
    """
    if not isinstance(body, Mapping):
        raise RetryError("the answer is no JSON object")
    if body.get("error") or body.get("object") == "error":
        raise read_error(body.get("error") or body)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        said = body.get("message") or body.get("detail")
        raise RetryError("the answer holds no choice" + (f": {said}" if said else ""))
    message = choices[0].get("message")
    if not isinstance(message, Mapping):
        raise RetryError("the answer holds no message")
    return Reply(_text(message), _finish(choices[0].get("finish_reason")), _tokens(body.get("usage")))


def read_error(error: Any, status: int | None = None) -> ReplyError:
    """The error of a reply: a text, or a mapping with a message, a code and a type, any of which may be missing."""
    if not isinstance(error, Mapping):
        return ReplyError(status, str(error))
    kinds = [str(error[key]) for key in ("code", "type") if error.get(key) is not None]
    numbers = [int(kind) for kind in kinds if kind.isdecimal() and len(kind) == 3]
    known = [kind for kind in kinds if kind in OUT_OF_QUOTA]
    reason = str(error.get("message") or error.get("detail") or _written(error))
    return ReplyError(status or next(iter(numbers), None), reason, next(iter(known or kinds), ""))


def _written(error: Mapping[str, Any]) -> str:
    try:
        return json.dumps(error, default=str)
    except RecursionError:
        return "a reply that is nested too deeply to be shown"


def _text(message: Mapping[str, Any]) -> str:
    """The content: a string, or the text parts of a list; where there is none, the words of a refusal."""
    content = message.get("content")
    if content is None:
        refusal = message.get("refusal")
        return refusal if isinstance(refusal, str) else ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RetryError("the answer's content is no text")
    parts = [part if isinstance(part, Mapping) else {"text": part} for part in content]
    texts = [part.get("text") for part in parts if part.get("type", "text") in ("text", "output_text")]
    if not all(isinstance(text, str) for text in texts):
        raise RetryError("the answer's content is no text")
    return "".join(map(str, texts))


def _finish(reason: Any) -> Literal["stop", "length", "broken"]:
    """Only what is known as an end of the model's own makes an answer whole: `content_filter` does not."""
    name = "stop" if reason is None else str(reason).casefold()
    if name == "error":
        raise RetryError("the server broke its answer off with an error")
    if name in WHOLE:
        return "stop"
    return "length" if name in AT_THE_LIMIT else "broken"


def _tokens(usage: Any) -> int | None:
    count = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: OpenAI's milliseconds, seconds, or a date (RFC 9110, 10.2.3)."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        if not math.isnan(seconds):
            return max(0.0, seconds)
    try:
        parsed = email.utils.parsedate_tz(headers.get("retry-after", ""))
        return None if parsed is None else max(0.0, email.utils.mktime_tz(parsed) - time.time())
    except (ValueError, OverflowError):  # a date of the year 99999 names no time to wait for
        return None
