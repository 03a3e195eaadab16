"""Reference log-probs: where they come from, and the cache that keeps them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from align.core.moved import renamed

if not TYPE_CHECKING:
    __getattr__ = partial(renamed, __name__)
