"""Stretches of a text, and which of them lie in others."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate


class Regions:
    """Stretches of a text, asked many times.

    `Regions([(2, 5), (7, 9)]).holds(3, 5)` is true, and of 4 and 8 it is false: no single stretch has both.

    Args:
        spans: `(start, stop)`, in any order.
    """

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(spans)
        self._starts = [start for start, _ in ordered]
        self._furthest = list(accumulate((stop for _, stop in ordered), max))

    def holds(self, start: int, stop: int) -> bool:
        """Whether one of the stretches has all from `start` to `stop`."""
        before = bisect_right(self._starts, start)
        return before > 0 and self._furthest[before - 1] >= stop
