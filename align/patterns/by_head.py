"""Patterns of one layer's heads: the same for all of them, or one for each run of heads."""

from __future__ import annotations

from dataclasses import dataclass

from align.patterns.pattern import Pattern, Span, pattern_pairs


@dataclass(frozen=True)
class Run:
    """Consecutive heads with one pattern: query heads, the KV heads that they read, equally many each."""

    query: Span
    kv: Span
    pattern: Pattern


@dataclass(frozen=True)
class ByHead:
    """A pattern for each run of a layer's query heads.

    `ByHead((((0, 16), Chunked(2048)), ((16, 32), Chunked(2048, shift=1024))))`: the halves of 32 heads.

    Attributes:
        spans: of query heads, ascending and without gaps from 0 on, each with its pattern.
        queries_per_kv: query heads that share a KV head.
    """

    spans: tuple[tuple[Span, Pattern], ...]
    queries_per_kv: int = 1

    def __str__(self) -> str:
        """As people read it: `heads 0 … 15 Chunked(size=4), heads 16 … 31 Chunked(size=4, shift=2)`."""
        return ", ".join(f"heads {start} … {stop - 1} {pattern}" for (start, stop), pattern in self.spans)

    def runs(self, heads: Span) -> list[Run]:
        """Some of the layer's heads `(first, last)` as runs of one pattern, counted from the first of them.

        A pattern's border may lie within the query heads of a KV head: of 9 heads on 3 KV heads, cut at 4, the runs are
        0 … 2 on the KV head 0, 3 on 1, with the other pattern 4 and 5 on 1, and 6 … 8 on 2.
        """
        found = []
        shared, kv_start = self.queries_per_kv, heads[0] // self.queries_per_kv
        for (start, stop), pattern in self.spans:
            low, high = max(start, heads[0]), min(stop, heads[1])
            while low < high:
                kv = low // shared
                whole = (
                    (high - low) // shared if low % shared == 0 else 0
                )  # KV heads with all their query heads
                end = low + whole * shared if whole else min(high, (kv + 1) * shared)
                kv_heads = (kv - kv_start, kv - kv_start + max(whole, 1))
                found.append(Run((low - heads[0], end - heads[0]), kv_heads, pattern))
                low = end
        return found


def seen_pairs(pattern: Pattern | ByHead, queries: Span) -> float:
    """As `pattern_pairs`; of patterns by head the mean over the heads."""
    if not isinstance(pattern, ByHead):
        return pattern_pairs(pattern, queries)
    heads = pattern.spans[-1][0][1]
    return sum((stop - start) * pattern_pairs(one, queries) for (start, stop), one in pattern.spans) / heads
