"""Attention patterns: which of the tokens before it a token sees.

A pattern speaks of a branch's *logical* tokens: a prompt's, 0 … P−1, and one answer's behind them, P … P+L−1. It cuts
queries into blocks, and says of each block which earlier tokens all of it sees (`earlier`), and which leave one by one
(`fading`); the block itself is causal. longseq/parts.py turns blocks into calls of a kernel, none of which needs a
mask. With a window of 4 tokens, queries 6 … 8 are one block: they see themselves causally, and of the tokens 3 … 5
query 6 all three, query 7 the last two, and query 8 the last one.

A pattern of one's own is a frozen dataclass (it is a key of caches) with `check`, `blocks` and `sees`; `sees` is what
tests hold `blocks` against, and what makes a mask where no kernel can be used. What a token sees may depend on places
alone, never on how long the row is: the log-prob of an answer would change with the answers beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol

from align.core.errors import UserError

# `(start, stop)` of consecutive tokens, or heads.
Span = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """Consecutive logical queries of a branch, and the tokens before them that they see.

    Attributes:
        queries: the block, which sees itself causally.
        earlier: ascending, disjoint spans before it that every query of the block sees.
        fading: a span before it whose tokens leave one by one; empty where it stops at its start.
        intact: of the fading span: query i of the block sees all of it up to i = `intact`, then one token fewer each.
    """

    queries: Span
    earlier: tuple[Span, ...] = ()
    fading: Span = (0, 0)
    intact: int = 0


class Pattern(Protocol):
    """Who sees whom, hashable; see the module's text."""

    def check(self) -> None:
        """Raises UserError for sizes that no pattern has."""
        ...

    def blocks(self, queries: Span) -> Iterator[Block]:
        """Cuts the logical queries `[start, stop)` into blocks, in their order and without gaps."""
        ...

    def sees(self, query: Any, key: Any) -> Any:
        """Whether a query sees a key, by their logical places; whole numbers, or tensors that broadcast."""
        ...

    def __hash__(self) -> int: ...


class _Shown:
    """Shows a pattern by what is not at its default: `Window(size=512)`."""

    def __repr__(self) -> str:
        given = ", ".join(
            f"{item.name}={getattr(self, item.name)}"
            for item in fields(self)  # type: ignore[arg-type]
            if getattr(self, item.name) != item.default
        )
        return f"{type(self).__name__}({given})"


@dataclass(frozen=True, repr=False)
class Full(_Shown):
    """Every token sees all before it, and itself."""

    def check(self) -> None:
        """Nothing can be wrong."""

    def blocks(self, queries: Span) -> Iterator[Block]:
        """One block, and all tokens before it."""
        yield Block(queries, _present((0, queries[0])))

    def sees(self, query: Any, key: Any) -> Any:
        """See `Pattern`."""
        return key <= query


@dataclass(frozen=True, repr=False)
class Window(_Shown):
    """Every token sees the last `size` tokens, itself among them, and the first `sinks` (sliding-window attention).

    Blocks of `size − 1` queries, each with the `size − 1` tokens before it, which leave one by one: two causal squares
    a block, the second one on reversed tokens. With sinks it is the Λ of LM-Infinite (arXiv 2308.16137) and of
    StreamingLLM (arXiv 2309.17453). `Window(3, sinks=1)`: token 7 sees 0, 5, 6 and 7.
    """

    size: int
    sinks: int = 0

    def check(self) -> None:
        """See `Pattern`."""
        _check_sizes(self, least={"size": 1, "sinks": 0})

    def blocks(self, queries: Span) -> Iterator[Block]:
        """See `Pattern`."""
        step, (first, last) = max(1, self.size - 1), queries
        for start in range(first, last, step):
            kept, leaving = min(self.sinks, start), start - self.size + 1
            fading = (max(leaving, kept), start) if self.size > 1 else (start, start)
            some = fading[0] < fading[1]
            yield Block(
                (start, min(start + step, last)),
                _present((0, kept)),
                fading if some else (0, 0),
                fading[0] - leaving if some else 0,
            )

    def sees(self, query: Any, key: Any) -> Any:
        """See `Pattern`."""
        return (key <= query) & ((query - key < self.size) | (key < self.sinks))


@dataclass(frozen=True, repr=False)
class Chunked(_Shown):
    """Every token sees those before it in its own chunk of `size` tokens, itself, and the first `sinks` tokens.

    Chunks are [0, size), [size, 2·size), … (Llama-4's local layers), or [0, shift), [shift, shift + size), …
    (LongLoRA's shifted groups, arXiv 2309.12307, without its leak: the row is cut, not rolled).
    `Chunked(4, shift=2, sinks=1)`: token 7 sees 0, 6 and 7.
    """

    size: int
    shift: int = 0
    sinks: int = 0

    def check(self) -> None:
        """See `Pattern`."""
        _check_sizes(self, least={"size": 1, "shift": 0, "sinks": 0})
        if self.shift >= self.size:
            raise UserError(f"attention: a shift of {self.shift} has to be below the size of {self.size}.")

    def blocks(self, queries: Span) -> Iterator[Block]:
        """See `Pattern`."""
        start, last = queries
        while start < last:
            number = self._number(start)
            chunk, end = max(0, number * self.size + self.shift), (number + 1) * self.size + self.shift
            yield Block((start, min(end, last)), _present((0, min(self.sinks, chunk)), (chunk, start)))
            start = min(end, last)

    def sees(self, query: Any, key: Any) -> Any:
        """See `Pattern`."""
        return (key <= query) & ((self._number(key) == self._number(query)) | (key < self.sinks))

    def _number(self, token: Any) -> Any:
        """Of its chunk; −1 is the one before the first shifted one."""
        return (token - self.shift) // self.size


@dataclass(frozen=True, repr=False)
class Strided(_Shown):
    """By blocks: a token sees its own block causally, some blocks before it, each `stride`-th block, and first tokens.

    Token t of the block i = t // block sees the blocks i − recent … i − 1, of those before them the ones whose number
    is a multiple of `stride`, and the first `sinks` tokens (LongGen, arXiv 2410.01485). With `stride=0` it is a window
    by blocks, which computes no squares on reversed tokens. `Strided(2, recent=1, stride=2)`: token 11 sees 0, 1, 4, 5,
    8, 9, 10 and 11.
    """

    block: int
    recent: int = 1
    sinks: int = 0
    stride: int = 0

    def check(self) -> None:
        """See `Pattern`."""
        _check_sizes(self, least={"block": 1, "recent": 0, "sinks": 0, "stride": 0})

    def blocks(self, queries: Span) -> Iterator[Block]:
        """See `Pattern`; what is kept for all later blocks keeps its borders, so that their calls join."""
        start, last = queries
        while start < last:
            number = start // self.block
            begin, end = number * self.block, (number + 1) * self.block
            recent = max(0, number - self.recent) * self.block
            sinks = min(self.sinks, begin)
            kept = range(0, recent // self.block, self.stride) if self.stride else ()
            columns = [(max(one * self.block, sinks), (one + 1) * self.block) for one in kept]
            yield Block(
                (start, min(end, last)),
                _present((0, sinks), *columns, (max(recent, sinks), begin), (begin, start)),
            )
            start = min(end, last)

    def sees(self, query: Any, key: Any) -> Any:
        """See `Pattern`."""
        own, other = query // self.block, key // self.block
        seen = (own - other <= self.recent) | (key < self.sinks)
        if self.stride:
            seen = seen | (other % self.stride == 0)
        return (key <= query) & seen


FULL = Full()


def _present(*spans: Span) -> tuple[Span, ...]:
    """Those that hold a token."""
    return tuple(span for span in spans if span[0] < span[1])


def _check_sizes(pattern: Any, *, least: dict[str, int]) -> None:
    """Refuses a size below its least value."""
    for name, value in least.items():
        given = getattr(pattern, name)
        if given < value:
            raise UserError(
                f"attention: {name}={given} of {type(pattern).__name__} has to be a number of tokens or blocks, from "
                f"{value} on."
            )


def pattern_pairs(pattern: Pattern, queries: Span) -> int:
    """Pairs of a query and a key that it sees, over consecutive logical queries: what attention has to work on.

    4 queries behind a prompt of 10 tokens: 11 + 12 + 13 + 14 = 50 in full attention, 12 with a window of 3.
    """
    pairs = 0
    for block in pattern.blocks(queries):
        size = block.queries[1] - block.queries[0]
        pairs += size * (size + 1) // 2
        pairs += size * sum(stop - start for start, stop in block.earlier)
        keys = block.fading[1] - block.fading[0]
        whole = min(size, block.intact)
        losing = max(0, min(size - whole, keys))
        pairs += whole * keys + losing * keys - losing * (losing - 1) // 2
    return pairs
