"""Values as Hydra and OmegaConf have to be given them, so that they mean themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def literal(value: Any) -> Any:
    """The value with every `${` in its strings escaped, at any depth: OmegaConf then resolves to it.

    Backslashes mean themselves to OmegaConf but before `${`, where they are doubled.
    """
    if isinstance(value, dict):
        return {key: literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [literal(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def quoted(text: str, *, mark: str = "'") -> str:
    """A text as Hydra takes it as it is, whatever characters it has: `it's` is `'it\\'s'`.

    Backslashes mean themselves to Hydra too, but before a quote and at the end, where they are doubled.

    Args:
        text: what is to be read.
        mark: the quotes around it, `'` or `"`.
    """

    def escaped(found: re.Match[str]) -> str:
        return found[1] * 2 + (f"\\{mark}" if found[2] else "")

    whole = re.sub(rf"(\\*)({mark}|$)", escaped, literal(text))
    return f"{mark}{whole}{mark}"


def override(key: str, value: str | Path) -> str:
    """An override whose value Hydra takes as it is."""
    return f"{key}={quoted(str(value))}"
