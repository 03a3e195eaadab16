"""What a server's refusal means: another attempt, or the sentence that ends the run. None of them holds the key."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from align.core.errors import UserError
from align.generation.pool import RetryError
from align.generation.replies import OUT_OF_QUOTA, ReplyError

if TYPE_CHECKING:
    from align.generation.generators import Request
    from align.generation.server import OpenAISettings

RETRIED = (408, 409, 425, 429)  # and all from 500 on
LONGEST = 300  # characters of a server's words that are shown
NO_KEY = "none"  # sent where the server wants none


def read_key(variable: str | None) -> str:
    """The key in an environment variable; the word `none` where there is no variable.

    Raises:
        UserError: it is not set, or holds what no key has.
    """
    if variable is None:
        return NO_KEY
    key = os.environ.get(variable, "").strip()  # a file that is read into a variable ends in a line break
    if not key:
        raise UserError(
            f"generator.api_key_env={variable}: this environment variable is not set. Set it, or "
            "set generator.api_key_env=null for a server without keys."
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"generator.api_key_env={variable}: this environment variable holds no key: a character in it is none "
            "of printable ASCII, so that it cannot be sent. Set it to the key alone."
        )
    return key


def redacted(text: str, variable: str | None) -> str:
    """The first line of a message without the key, which servers and libraries like to repeat.

    Args:
        text: the message; the key may stand in it as it is, or as Python, JSON or an address would write it.
        variable: of the environment, that holds the key.
    """
    if variable is not None:
        key = read_key(variable)
        for written in sorted(
            {key, repr(key)[1:-1], json.dumps(key)[1:-1], quote(key)}, key=len, reverse=True
        ):
            text = text.replace(written, "***")
    return (text.strip().splitlines() or [""])[0][:LONGEST]


def problem(request: Request, settings: OpenAISettings, error: ReplyError, after: float | None) -> Exception:
    """Whether to try again, or the one sentence that ends the run."""
    url, status, reason = settings.base_url, error.status, redacted(error.reason, settings.api_key_env)
    says = f"status {status}: {reason}" if status is not None else f"it answered with an error: {reason}"
    if error.kind in OUT_OF_QUOTA:
        return UserError(
            f"generator.base_url={url} has no quota left for this key ({says}): start the same command "
            "again when it has; nothing that it answered is lost."
        )
    if status is None or status in RETRIED or status >= 500:
        turned_away = status == 429 or (status == 503 and after is not None)
        return RetryError(says, after=after, everybody=turned_away)
    if status in (401, 403):
        variable = settings.api_key_env or "none, since generator.api_key_env=null"
        return UserError(
            f"generator.base_url={url} refuses the key (status {status}; the key is "
            f"that of the environment variable: {variable}). Nothing that it answered is lost."
        )
    refused = [key for key in settings.sent if re.search(rf"\b{key}\b", reason)]
    cure = (
        f" Where the model takes no {refused[0]}, leave it out of generator.sent"
        f"{' or set generator.seed_bits=31' if refused[0] == 'seed' else ''}."
        if refused
        else ""
    )
    return UserError(
        f"{request.id}: generator.base_url={url} refuses this call (status {status}: {reason}). "
        f"Nothing that it answered is lost.{cure}"
    )
