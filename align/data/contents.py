"""What stands in a column or a message, as text: bytes, lists of text parts, conversations stored as JSON."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Types of content parts that hold text: in chat rows, and in rows kept from OpenAI's responses.
TEXT_PARTS = (None, "text", "input_text", "output_text")
# How messages begin that were stored as text: as JSON, or as Python prints them (pandas' to_csv does).
_STORED = re.compile(r"""\s*(?:\[\s*)?\{\s*(['"])(?:role|from|content|value)\1\s*:""")

_LISTED = re.compile(r"""\s*\[\s*(?:\[\s*)?['"]""")  # how printed lists of texts begin


class Cell(str):
    """A field of a table as text that begins like a list: where a column may be one, it was printed."""

    __slots__ = ()


def as_text(value: Any) -> Any:
    """Bytes that are UTF-8 as the text they are; everything else as it is."""
    if isinstance(value, bytes | bytearray):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            return value
    return value


def filled(value: Mapping[str, Any], *names: str) -> Any:
    """The first of the names that is there and not null: where schemas are merged, Arrow fills keys with null."""
    return next((value[name] for name in names if value.get(name) is not None), None)


def joined_parts(parts: list[Any]) -> str | None:
    """The text of a content that is a list of parts, `[{"type": "text", "text": "Why?"}]`; None if one is no text."""
    texts = []
    for part in parts:
        if part is None:
            continue
        if isinstance(part, Mapping):
            text = as_text(part.get("text")) if part.get("type") in TEXT_PARTS else None
        else:
            text = as_text(part)
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


def part_kinds(parts: list[Any]) -> str:
    """The types of a content's parts that hold no text, for messages: `image`."""
    kinds = {
        str(part.get("type")) if isinstance(part, Mapping) else type(part).__name__
        for part in parts
        if part is not None and joined_parts([part]) is None
    }
    return ", ".join(sorted(kinds))


def stored_messages(text: str) -> Any:
    """Messages that were stored as text; None where the text is no such thing.

    `[{"role": "user", "content": "Why?"}]` is one: a list of objects that have a role and a content each, or one such
    object, as JSON or as Python prints it.
    """
    if not _STORED.match(text):
        return None
    value = _parsed(text)
    messages = value if isinstance(value, list) else [value]
    if not messages or not all(isinstance(one, dict) for one in messages):
        return None
    whole = all(
        filled(one, "role", "from") is not None and ("content" in one or "value" in one) for one in messages
    )
    return value if whole else None


def begins_like_messages(text: str) -> bool:
    """Whether a text begins as stored messages do and ends as a list of them."""
    return _STORED.match(text) is not None and text.rstrip().endswith("]")


def printed_list(text: str) -> list[Any] | None:
    """A list of texts, or of lists of them, that was printed as JSON or by Python; None where the text is none.

    Raises:
        ValueError: it was printed by something else: numpy writes `['no' 'perhaps']`, which Python reads as one text.
    """
    value = _parsed(text) if _LISTED.match(text) else None
    if not isinstance(value, list) or not value or not all(map(_is_texts, value)):
        return None
    tokens = list(tokenize.generate_tokens(io.StringIO(text.strip()).readline)) if not _is_json(text) else []
    if tokens and sum(token.type == tokenize.STRING for token in tokens) != len(list(strings_of(value))):
        raise ValueError("two texts without a comma between them")
    return value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def strings_of(values: Iterable[Any]) -> Iterator[str]:
    """Every string in nested lists and dictionaries, names of keys included."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from strings_of(value)
            yield from strings_of(value.values())
        elif isinstance(value, list | tuple):
            yield from strings_of(value)


def kind(value: Any) -> str:
    """The type of a value, for messages."""
    if isinstance(value, bytes | bytearray):
        return "bytes that are no UTF-8 text"
    return type(value).__name__
