"""A row's attention as calls that need no mask: causal squares, and full rectangles of what came before.

Query t of an answer sees the whole prompt and its answer up to itself. That is a rectangle (the answer's
queries × the prompt's keys, nothing masked) and a causal square (the answer with itself). A shard of a span
adds the rectangle of the span's earlier keys. The rectangles over the prompt of all answers are one call, as
siblings follow each other in the row. `merge.py` adds the calls' softmaxes up.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from align.longseq.shared_prefix import PackedPrompt, Span


@dataclass(frozen=True)
class Part:
    """One call of an attention kernel: some of a row's queries to some of its keys.

    A prompt of 10 tokens with answers of 4 and 3 takes two. `Part((0, 17), (0, 17), (10, 4, 3))` is three causal
    squares: the prompt with itself, and each answer with itself. `Part((10, 17), (0, 10))` is one rectangle: both
    answers' queries and the whole prompt.

    Attributes:
        queries: their span among the queries that are attended from here.
        keys: their span of the row.
        squares: sizes of the consecutive causal squares into which queries and keys fall alike; empty where
            every query sees every key.
    """

    queries: Span
    keys: Span
    squares: tuple[int, ...] = ()

    def each(self) -> Iterator[Part]:
        """One part for each square, for kernels that take one sequence a call; itself for a rectangle."""
        if len(self.squares) < 2:
            yield self
            return
        query, key = self.queries[0], self.keys[0]
        for size in self.squares:
            yield Part((query, query + size), (key, key + size), (size,))
            query, key = query + size, key + size


class Own:
    """Ascending, disjoint spans of the row, whose queries are attended from here one behind the other.

    What lies inside another span is found by bisection: a row of many prompts has many spans, on both sides.
    """

    def __init__(self, spans: tuple[Span, ...]) -> None:
        self._spans = spans
        self._stops = [stop for _, stop in spans]
        self._places = [0, *accumulate(stop - start for start, stop in spans)]

    def within(self, span: Span) -> Iterator[tuple[Span, Span]]:
        """What of them lies inside `span`, each stretch with its place among the own queries.

        With own tokens (0, 2) and (6, 9), the span (5, 8) holds (6, 8), whose places are (2, 4).
        """
        for i in range(bisect_right(self._stops, span[0]), len(self._spans)):
            start, stop = self._spans[i]
            low, high = max(start, span[0]), min(stop, span[1])
            if low >= span[1]:
                return
            if low < high:
                place = self._places[i] + low - start
                yield (low, high), (place, place + high - low)


def parts_of(prompts: tuple[PackedPrompt, ...], own: tuple[Span, ...]) -> tuple[Part, ...]:
    """What the queries in `own` attend: first the squares, which hold every query once, then the rectangles.

    Args:
        prompts: of the whole row, with their answers.
        own: ascending, disjoint spans of the row.
    """
    held = Own(own)
    squares = _Squares()
    rectangles: list[Part] = []
    for packed in prompts:
        answers = []
        for span in (packed.prompt, *packed.answers):
            for (start, stop), place in held.within(span):
                squares.add(place, (start, stop))
                if start > span[0]:
                    rectangles.append(Part(place, (span[0], start)))
                if span != packed.prompt:
                    answers.append(place)
        if answers:
            rectangles.append(Part((answers[0][0], answers[-1][1]), packed.prompt))
    return (*squares.parts(), *rectangles)


class _Squares:
    """Causal squares; one that goes on where the last one ends, in queries and in keys, joins its call."""

    def __init__(self) -> None:
        self._calls: list[tuple[Span, Span, list[int]]] = []

    def add(self, queries: Span, keys: Span) -> None:
        size = queries[1] - queries[0]
        if self._calls:
            (first_query, last_query), (first_key, last_key), sizes = self._calls[-1]
            if last_query == queries[0] and last_key == keys[0]:
                sizes.append(size)
                self._calls[-1] = ((first_query, queries[1]), (first_key, keys[1]), sizes)
                return
        self._calls.append((queries, keys, [size]))

    def parts(self) -> Iterator[Part]:
        return (Part(queries, keys, tuple(sizes)) for queries, keys, sizes in self._calls)


def flatten(parts: Iterable[Part]) -> list[int]:
    """Parts as the whole numbers that an operator of torch takes; `unflatten` reads them back.

    `Part((10, 17), (0, 10))` is `10, 17, 0, 10, 0`; the last number counts the squares, whose sizes would follow.
    """
    return [
        number for part in parts for number in (*part.queries, *part.keys, len(part.squares), *part.squares)
    ]


def unflatten(numbers: list[int]) -> list[Part]:
    """The parts that `flatten` wrote."""
    parts, at = [], 0
    while at < len(numbers):
        count = numbers[at + 4]
        sizes = tuple(numbers[at + 5 : at + 5 + count])
        parts.append(Part((numbers[at], numbers[at + 1]), (numbers[at + 2], numbers[at + 3]), sizes))
        at += 5 + count
    return parts
