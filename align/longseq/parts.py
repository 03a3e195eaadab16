"""A row's attention as calls that need no mask: causal squares, and full rectangles of what came before.

Query t of an answer sees the whole prompt and its answer up to itself. That is a rectangle (the answer's
queries × the prompt's keys, nothing masked) and a causal square (the answer with itself). A shard of a span
adds the rectangle of the span's earlier keys. The rectangles over the prompt of all answers are one call, as
siblings follow each other in the row. `merge.py` adds the calls' softmaxes up.

Where a layer sees less than everything (patterns/pattern.py), its blocks are squares, what all of a block sees are
rectangles, and tokens that leave a window one by one are *mirrored* squares: where query i sees the keys from the i-th
on, the same tokens in reversed order see each other causally.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, chain, groupby

from align.longseq.shared_prefix import PackedPrompt, Span
from align.patterns.pattern import FULL, Pattern

REVERSED = (
    2**14
)  # tokens of mirrored squares in one part, if they are more than one: it bounds what reversing copies


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
        mirrored: of squares, that query i of each sees its keys from the i-th on, not up to it.
        heads: of which query heads and of which KV heads, where a layer's heads have patterns of their own; None is
            all.
    """

    queries: Span
    keys: Span
    squares: tuple[int, ...] = ()
    mirrored: bool = False
    heads: tuple[Span, Span] | None = None

    def each(self, halved: range = range(0)) -> Iterator[Call]:
        """A call for each run of equal squares, for kernels that take no sequences of unlike sizes; a rectangle is one.

        Args:
            halved: sizes of squares that are cut into two of half the size and the rectangle between them: a square of
                6 is two of 3, and 3 queries that see 3 keys. Squares come before the rectangles of their queries.
        """
        if not self.squares:
            yield Call(self)
            return
        query, key = self.queries[0], self.keys[0]
        for size, alike in groupby(self.squares):
            count = len(list(alike))
            for part in _square(query, key, size, self.mirrored, halved):
                yield Call(replace(part, heads=self.heads), count, step=size)
            query, key = query + count * size, key + count * size


@dataclass(frozen=True)
class Call:
    """A part as often as it repeats: all blocks of a window are alike, and a kernel takes them as a batch.

    Attributes:
        part: the first.
        count: how many there are.
        step: tokens from one to the next, in queries and in keys alike; no fewer than either has.
    """

    part: Part
    count: int = 1
    step: int = 1


def _square(query: int, key: int, size: int, mirrored: bool, halved: range) -> Iterator[Part]:
    """A square from these tokens on, or its halves and the rectangle between them."""
    if size not in halved:
        yield Part((query, query + size), (key, key + size), (size,), mirrored)
        return
    half = size // 2 if mirrored else size - size // 2  # the rectangle has the larger half of the keys
    yield from _square(query, key, half, mirrored, halved)
    yield from _square(query + half, key + half, size - half, mirrored, halved)
    first, second = (query, query + half), (query + half, query + size)
    earlier, later = (key, key + half), (key + half, key + size)
    yield Part(first, later) if mirrored else Part(second, earlier)


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


def parts_of(
    prompts: tuple[PackedPrompt, ...], own: tuple[Span, ...], pattern: Pattern = FULL
) -> tuple[Part, ...]:
    """What the queries in `own` attend: first the squares, which hold every query once, then the rest.

    Args:
        prompts: of the whole row, with their answers.
        own: ascending, disjoint spans of the row.
        pattern: which of the tokens before it a token of a branch sees.
    """
    held, calls = Own(own), _Calls()
    for packed in prompts:
        branches = [_Branch(packed.prompt, packed.prompt)]
        branches += [_Branch(packed.prompt, answer) for answer in packed.answers]
        for branch in branches:
            for stretch, place in held.within(branch.last):
                _add_stretch(calls, branch, stretch, place[0], pattern)
    return calls.parts()


@dataclass(frozen=True)
class _Branch:
    """A prompt (which is then `last`, too), or a prompt with one of its answers: where its logical tokens lie."""

    prompt: Span
    last: Span

    def logical(self, token: int) -> int:
        """The place in the branch of a token of the row that lies in `last`."""
        before = 0 if self.last == self.prompt else self.prompt[1] - self.prompt[0]
        return before + token - self.last[0]

    def in_row(self, span: Span) -> Iterator[tuple[Span, int]]:
        """Where logical tokens lie in the row, in one stretch or two, each with the logical place of its first.

        The second answer at (14, 17), behind a prompt of 10: its logical tokens (8, 12) are the row's (8, 10), from 8,
        and (14, 16), from 10.
        """
        size = self.prompt[1] - self.prompt[0]
        start, stop = max(span[0], 0), span[1]
        if start < min(stop, size):
            yield (self.prompt[0] + start, self.prompt[0] + min(stop, size)), start
        if max(start, size) < stop:
            shift = self.last[0] - size
            yield (max(start, size) + shift, stop + shift), max(start, size)


def _add_stretch(calls: _Calls, branch: _Branch, stretch: Span, place: int, pattern: Pattern) -> None:
    """The calls of consecutive tokens of one prompt or answer, the first of which is the own query `place`."""
    first = branch.logical(stretch[0])
    for block in pattern.blocks((first, first + stretch[1] - stretch[0])):
        start, stop = (place + logical - first for logical in block.queries)
        in_row = stretch[0] + block.queries[0] - first
        calls.square((start, stop), (in_row, in_row + stop - start))
        for earlier in block.earlier:
            for keys, _ in branch.in_row(earlier):
                calls.rectangle((start, stop), keys)
        if block.fading[0] < block.fading[1]:
            for keys, logical in branch.in_row(block.fading):
                calls.fading((start, stop), keys, unseen=logical - block.fading[0] + block.intact)


class _Calls:
    """Collects calls; what goes on where another one ends joins it."""

    def __init__(self) -> None:
        self._squares, self._mirrored = _Squares(mirrored=False), _Squares(mirrored=True)
        self._rectangles: dict[Span, list[Span]] = {}  # the keys → their queries, ascending

    def square(self, queries: Span, keys: Span) -> None:
        """Queries that see the same tokens causally."""
        self._squares.add(queries, keys)

    def rectangle(self, queries: Span, keys: Span) -> None:
        """Queries that see all of some keys."""
        if queries[0] == queries[1] or keys[0] == keys[1]:
            return
        runs = self._rectangles.setdefault(keys, [])
        if runs and runs[-1][1] == queries[0]:
            runs[-1] = (runs[-1][0], queries[1])
        else:
            runs.append(queries)

    def fading(self, queries: Span, keys: Span, *, unseen: int) -> None:
        """Queries that see keys which leave one by one: query i sees all until it passes `unseen`, then one fewer each.

        With 5 queries, 4 keys and 1 unseen: query 0 sees all keys, 1 all, 2 the last three, 3 the last two, 4 the last
        one.
        """
        first, last = queries
        fades = min(first + unseen, last)  # before it nothing has left
        self.rectangle((first, fades), keys)
        size = min(last - fades, keys[1] - keys[0])
        if size > 0:
            self._mirrored.add((fades, fades + size), (keys[0], keys[0] + size))
            self.rectangle((fades, fades + size), (keys[0] + size, keys[1]))

    def parts(self) -> tuple[Part, ...]:
        """Squares first."""
        rectangles = (Part(queries, keys) for keys, runs in self._rectangles.items() for queries in runs)
        return (*self._squares.parts(), *self._mirrored.parts(), *rectangles)


class _Squares:
    """Squares; one that goes on where the last one ends, in queries and in keys, joins its call.

    Of mirrored ones no more than `REVERSED` tokens: their copies would grow with the row.
    """

    def __init__(self, *, mirrored: bool) -> None:
        self._mirrored = mirrored
        self._calls: list[tuple[Span, Span, list[int]]] = []

    def add(self, queries: Span, keys: Span) -> None:
        size = queries[1] - queries[0]
        if self._calls:
            (first_query, last_query), (first_key, last_key), sizes = self._calls[-1]
            full = self._mirrored and queries[1] - first_query > REVERSED
            if last_query == queries[0] and last_key == keys[0] and not full:
                sizes.append(size)
                self._calls[-1] = ((first_query, queries[1]), (first_key, keys[1]), sizes)
                return
        self._calls.append((queries, keys, [size]))

    def parts(self) -> Iterator[Part]:
        for queries, keys, sizes in self._calls:
            yield Part(queries, keys, tuple(sizes), self._mirrored)


_ALL = ((0, 0), (0, 0))  # in place of a part's heads


def flatten(parts: Iterable[Part]) -> list[int]:
    """Parts as the whole numbers that an operator of torch takes; `unflatten` reads them back.

    `Part((10, 17), (0, 10))` is `10, 17, 0, 10, 0, 0, 0, 0, 0, 0`: four numbers of heads, which are 0 where it is of
    all, then whether squares are mirrored, and how many there are, whose sizes would follow.
    """
    return [
        number
        for part in parts
        for number in (
            *(*part.queries, *part.keys, *chain(*(part.heads or _ALL))),
            *(int(part.mirrored), len(part.squares), *part.squares),
        )
    ]


def unflatten(numbers: list[int]) -> list[Part]:
    """The parts that `flatten` wrote."""
    parts, at = [], 0
    while at < len(numbers):
        spans = [(first, last) for first, last in zip(*[iter(numbers[at : at + 8])] * 2, strict=True)]
        mirrored, count = numbers[at + 8 : at + 10]
        sizes = tuple(numbers[at + 10 : at + 10 + count])
        heads = None if (spans[2], spans[3]) == _ALL else (spans[2], spans[3])
        parts.append(Part(spans[0], spans[1], sizes, bool(mirrored), heads))
        at += 10 + count
    return parts
