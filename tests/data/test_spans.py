"""Stretches that lie in others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from align.data.spans import Regions

SPANS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted).map(tuple), max_size=6)


@given(regions=SPANS, asked=SPANS)
def test_a_stretch_lies_in_one_of_the_regions(
    regions: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    """As looking at each of them says, overlapping and empty ones included."""
    held = Regions(regions)
    for start, stop in asked:
        assert held.holds(start, stop) == any(first <= start and stop <= last for first, last in regions)
