"""Ranges of what a query scale is set to: one sentence for a value outside."""

from __future__ import annotations

import math

from align.core.errors import UserError
from align.query_scale.scale import KEY


def at_least(name: str, value: int, least: int) -> None:
    """Refuses a number below `least`."""
    if value < least:
        raise UserError(f"{KEY}.{name}={value} is too small: give a number from {least} on.")


def above_zero(name: str, value: float) -> None:
    """Refuses a number that is not above 0, or no finite one."""
    if not 0 < value < math.inf:
        raise UserError(f"{KEY}.{name}={value:g} has to be above 0.")


def window_within(window: int | None, *, least: int) -> None:
    """Refuses a window of fewer than `least` tokens; None is one that is not known yet."""
    if window is not None:
        at_least("window", window, least)
