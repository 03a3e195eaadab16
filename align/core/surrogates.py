"""Halves of surrogate pairs, which JSON can spell (`"\\ud83d"`) and no text can hold."""

from __future__ import annotations

import re

REPLACEMENT = "\ufffd"  # Unicode's sign for what was no character
_HALF = re.compile("[\ud800-\udfff]")


def whole_text(text: str) -> tuple[str, int]:
    """The text with U+FFFD in the place of every half of a surrogate pair, and how many there were."""
    return _HALF.subn(REPLACEMENT, text)
