"""A prompt's tokens with the chunks of its context, and what of the context goes where a row is too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Span = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt and the spans of its context chunks."""

    ids: np.ndarray
    chunks: tuple[Span, ...]


def chunks_of(span: Span, size: int) -> list[Span]:
    """`span` in chunks of `size` tokens, the last one shorter: (5, 12) by 3 is (5, 8), (8, 11), (11, 12)."""
    first, last = span
    return [(start, min(start + size, last)) for start in range(first, last, size)]


def removed_of(context: Span, excess: int, cut: str) -> Span:
    """Which `excess` tokens of the context go: its middle (both ends stay, as in LongBench), end or start.

    Of the context (10, 20) with an excess of 4: (13, 17) for `middle`, (16, 20) for `end`, (10, 14) for `start`.
    """
    first, last = context
    kept = last - first - excess
    start = {"middle": first + (kept + 1) // 2, "end": last - excess, "start": first}[cut]
    return start, start + excess


def cut_out(prompt: Prompt, removed: Span) -> Prompt:
    """The prompt without the tokens of `removed`; chunks shrink, and those that are empty vanish.

    Without (13, 17) the chunks (10, 15) and (15, 20) are (10, 13) and (13, 16).
    """
    start, stop = removed

    def moved(at: int) -> int:
        return at if at <= start else max(start, at - (stop - start))

    spans: Sequence[Span] = [(moved(first), moved(last)) for first, last in prompt.chunks]
    ids = np.concatenate([prompt.ids[:start], prompt.ids[stop:]])
    return Prompt(ids, tuple(span for span in spans if span[0] < span[1]))
