"""Attention patterns: which of the tokens before it a token sees, layer by layer.

A pattern speaks of a branch's *logical* tokens: a prompt's, 0 … P−1, and one answer's behind them, P … P+L−1. It cuts
queries into blocks, and says of each block which earlier tokens all of it sees (`earlier`), and which leave one by one
(`fading`); the block itself is causal. `parts.py` turns blocks into calls of a kernel, none of which needs a mask. With
a window of 4 tokens, queries 6 … 8 are one block: they see themselves causally, and of the tokens 3 … 5 query 6 all
three, query 7 the last two, and query 8 the last one.

A pattern of one's own is a frozen dataclass (it is a key of caches) with `blocks` and `sees`; `sees` is what tests hold
`blocks` against, and what makes a mask where no kernel can be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # plans count pairs without torch
    from align.longseq.shared_prefix import Span


@dataclass(frozen=True)
class Block:
    """Consecutive logical queries of a branch, and the tokens before them that they see.

    Attributes:
        queries: the block, which sees itself causally.
        earlier: ascending, disjoint spans before it that every query of the block sees.
        fading: a span before it whose tokens leave one by one: the block's query i sees them from the i-th on. It may
            begin below 0, where there are no tokens; empty where it stops at its start.
    """

    queries: Span
    earlier: tuple[Span, ...] = ()
    fading: Span = (0, 0)


class Pattern(Protocol):
    """Who sees whom, hashable; see the module's text."""

    def blocks(self, queries: Span) -> Iterator[Block]:
        """Cuts the logical queries `[start, stop)` into blocks, in their order and without gaps."""
        ...

    def sees(self, query: Any, key: Any) -> Any:
        """Whether a query sees a key, by their logical places; whole numbers, or tensors that broadcast."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Full:
    """Every token sees all before it, and itself."""

    def blocks(self, queries: Span) -> Iterator[Block]:
        """One block, and all tokens before it."""
        yield Block(queries, ((0, queries[0]),) if queries[0] else ())

    def sees(self, query: Any, key: Any) -> Any:
        """See `Pattern`."""
        return key <= query


@dataclass(frozen=True)
class Window:
    """Every token sees the last `size` tokens, itself among them: sliding-window attention.

    Blocks of `size − 1` queries, each with the `size − 1` tokens before it, which leave one by one: two causal squares
    a block, the second one on reversed tokens.
    """

    size: int

    def blocks(self, queries: Span) -> Iterator[Block]:
        """See `Pattern`."""
        step, (first, last) = max(1, self.size - 1), queries
        for start in range(first, last, step):
            fading = (start - self.size + 1, start) if start and self.size > 1 else (0, 0)
            yield Block((start, min(start + step, last)), fading=fading)

    def sees(self, query: Any, key: Any) -> Any:
        """See `Pattern`."""
        return (key <= query) & (query - key < self.size)


@dataclass(frozen=True)
class Chunked:
    """Every token sees those before it in its own chunk of `size` tokens, and itself (Llama-4's local layers)."""

    size: int

    def blocks(self, queries: Span) -> Iterator[Block]:
        """See `Pattern`."""
        start, last = queries
        while start < last:
            chunk = start // self.size * self.size
            stop = min(chunk + self.size, last)
            yield Block((start, stop), ((chunk, start),) if chunk < start else ())
            start = stop

    def sees(self, query: Any, key: Any) -> Any:
        """See `Pattern`."""
        return (key <= query) & (key // self.size == query // self.size)


FULL = Full()


def seen_pairs(pattern: Pattern, queries: Span) -> int:
    """Pairs of a query and a key that it sees, over consecutive logical queries: what attention has to work on.

    4 queries behind a prompt of 10 tokens: 11 + 12 + 13 + 14 = 50 in full attention, 12 with a window of 3.
    """
    pairs = 0
    for block in pattern.blocks(queries):
        size = block.queries[1] - block.queries[0]
        pairs += size * (size + 1) // 2
        pairs += size * sum(stop - start for start, stop in block.earlier)
        start, stop = block.fading
        whole, keys = min(size, max(-start, 0)), stop - max(start, 0)  # queries before any key has left
        losing = max(0, min(size - whole, keys))
        pairs += whole * keys + losing * keys - losing * (losing - 1) // 2
    return pairs
