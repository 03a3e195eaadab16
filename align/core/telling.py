"""One line for people, on stderr, from a launch's first process alone."""

from __future__ import annotations

import os

from rich.console import Console


def is_first() -> bool:
    """Whether this process is the one of a launch that writes and speaks; a process by itself is."""
    return int(os.environ.get("RANK", "0")) == 0


def tell(sentence: str) -> None:
    """Prints a sentence as it is, in one line however long."""
    if is_first():
        Console(stderr=True).print(sentence, soft_wrap=True, highlight=False, markup=False)
