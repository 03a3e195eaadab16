"""Settings of chat templates, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.core.errors import UserError

# What a rendering is given anyway, so that a setting of the same name would change what the row says.
RESERVED = (
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "conversation",
    "chat_template",
    "tokenize",
)


def check_template_kwargs(key: str, values: Mapping[str, Any] | None) -> None:
    """Refuses what is no mapping, and names that no variable of a template may have, naming the key."""
    if values is not None and not isinstance(values, Mapping):
        raise UserError(f"{key}={values} has to be a mapping, like {{enable_thinking: false}}.")
    for name in values or ():
        if name in RESERVED or not str(name).isidentifier():
            raise UserError(
                f"{key}: {name} cannot be set: give variables of the template, like {{enable_thinking: false}}."
            )


def read_template(key: str, path: str) -> str:
    """The text of a Jinja file.

    Raises:
        UserError: it cannot be read; names the key.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(
            f"{key}={path} cannot be read ({reason}): name a file with a Jinja template."
        ) from error


def check_syntax(key: str, source: str) -> None:
    """Refuses a text that is no Jinja template, naming the key."""
    from jinja2 import TemplateError, TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template([[{"role": "user", "content": "?"}]], chat_template=source)
    except TemplateSyntaxError as error:
        raise UserError(f"{key}: line {error.lineno} is no Jinja: {error.message}.") from error
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError):
        return  # it wants other messages; what is wrong is told of the row


def writes_date(source: Any) -> bool:
    """Whether a template, or one of several by name, asks for the date."""
    sources = source.values() if isinstance(source, Mapping) else [source]
    return any("strftime_now" in str(one) for one in sources)
