"""The all-to-all exchange: from a rank's own tokens of all heads to all tokens of its own heads, and back.

With 32 heads and a row of 8,000 tokens on 4 ranks, a rank comes with 2,000 tokens of 32 heads, attends with 8,000
tokens of 8 heads, and leaves with 2,000 tokens of 32 heads again (DeepSpeed-Ulysses, Jacobs et al. 2023,
arXiv:2309.14509). Heads need not be divisible by the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from align.longseq.attention import Attend
from align.longseq.sharding import Shards, count_tokens
from align.longseq.shared_prefix import Span

# Consecutive heads of one of the states that travel together: which state, its first head, the one after the last.
HeadSpan = tuple[int, int, int]


@dataclass(frozen=True)
class HeadShare:
    """One rank's heads under `Ulysses`: query heads `[query[0], query[1])`, and the KV heads that they read.

    A KV head whose query heads lie on two ranks is copied to both.
    """

    query: tuple[int, int]
    kv: tuple[int, int]

    def runs(self, queries_per_kv: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Spans of query and of KV heads in which each KV head has equally many of this rank's query heads.

        An attention kernel takes such a run in one call. Query heads 0 … 4, three of which share a KV head: KV head 0
        has all three here and KV head 1 two, so the runs are `(0, 3), (0, 1)` and `(3, 5), (1, 2)`.
        """
        first, last = self.query
        sharing = [
            min(last, (head + 1) * queries_per_kv) - max(first, head * queries_per_kv)
            for head in range(*self.kv)
        ]
        spans, query, kv = [], 0, 0
        for count, run in groupby(sharing):
            size = len(list(run))
            spans.append(((query, query + count * size), (kv, kv + size)))
            query, kv = query + count * size, kv + size
        return spans

    def head_spans(self, queries_per_kv: int) -> tuple[HeadSpan, ...]:
        """Queries (state 0), keys (1) and values (2) of each run; no queries at all where the rank has no heads.

        In the example of `runs`: `(0, 0, 3), (1, 0, 1), (2, 0, 1), (0, 3, 5), (1, 1, 2), (2, 1, 2)`.
        """
        query, kv = self.query[0], self.kv[0]
        found: list[HeadSpan] = []
        for (first, last), (first_kv, last_kv) in self.runs(queries_per_kv):
            found.append((0, query + first, query + last))
            found += [(state, kv + first_kv, kv + last_kv) for state in (1, 2)]
        return tuple(found) or ((0, 0, 0),)


def share_heads(heads: int, kv_heads: int, degree: int) -> tuple[HeadShare, ...]:
    """Query heads split at `i·H/n`, rounded: the largest share is `⌈H/n⌉`, so the ratio of the largest rank's
    attention to the mean is `⌈H/n⌉ · n/H` (9 heads on 2 ranks: 1.11; 28 on 8: 1.14; 7 on 4: 1.14).

    Ranks beyond the number of heads get none: their attention idles, their tokens do not.
    """
    per_kv = heads // kv_heads
    bounds = [(2 * rank * heads + degree) // (2 * degree) for rank in range(degree + 1)]
    return tuple(
        HeadShare((start, stop), (start // per_kv, (stop - 1) // per_kv + 1) if start < stop else (0, 0))
        for start, stop in pairwise(bounds)
    )


@dataclass(frozen=True)
class Ulysses:
    """All tokens, some heads.

    Rank a, who owns t_a tokens, sends rank b, who has h_b heads (queries, keys and values together), one
    `[t_a, h_b, D]`, and is sent back the outputs of those tokens. Both ways write states where they stay: beside
    them there is one copy on its way out and one on its way in.

    Attributes:
        group: the sequence-parallel group, n ranks.
        rank: this process's rank in it.
        shards: which of the row's T tokens each rank owns.
    """

    group: dist.ProcessGroup
    rank: int
    shards: Shards

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """`[1, H, t, D]`, `[1, H_kv, t, D]` twice → `[1, H, t, D]`, t the own tokens and those nobody sees."""
        heads, kv_heads = query.shape[1], key.shape[1]
        ranks = share_heads(heads, kv_heads, len(self.shards))
        shares = [rank.head_spans(heads // kv_heads) for rank in ranks]
        rows = _ToHeads.apply(self, shares, query, key, value)
        queries = [tuple(span for span in share if span[0] == 0) for share in shares]
        runs = zip(range(0, len(rows) // 3 * 3, 3), queries[self.rank], strict=False)
        outputs = [attend(*rows[run : run + 3], heads=(first, last)) for run, (_, first, last) in runs]
        # A rank without heads hands on its no queries, so that it takes part in the backward pass.
        output: Tensor = _ToTokens.apply(self, queries, query.shape[1:3], *(outputs or rows))
        return output

    def to_heads(self, states: Sequence[Tensor], shares: Sequence[Sequence[HeadSpan]]) -> list[Tensor]:
        """From the own tokens of all heads, `[1, H, ≥ t, D]`, to all tokens of the own heads, `[1, h, T, D]`.

        With 4 heads on two ranks that own 3 and 5 of 8 tokens, rank 0 sends rank 1 its 3 tokens of the heads 2 and 3,
        is sent the other 5 tokens of the heads 0 and 1, and so has those two heads of all 8 tokens.

        Args:
            states: queries, keys and values (or their outputs' gradient alone).
            shares: each rank's head spans.

        Returns:
            One tensor for each head span of this rank.
        """
        owned = self._tokens[self.rank]
        sent = self._own_tokens(states[0], shares)
        for blocks, share in zip(sent.blocks, shares, strict=True):
            for block, (state, first, last) in zip(blocks, share, strict=True):
                block.copy_(states[state][0, first:last, :owned].transpose(0, 1))
        received = self._swap(sent, self._own_heads(states[0], shares))
        del sent
        length, width = sum(self._tokens), states[0].shape[3]
        rows = [states[0].new_empty(length, last - first, width) for _, first, last in shares[self.rank]]
        for blocks, spans in zip(received.blocks, self.shards, strict=True):
            for block, row in zip(blocks, rows, strict=True):
                for in_row, in_shard in _places(spans):
                    row[in_row] = block[in_shard]
        return [row.transpose(0, 1)[None] for row in rows]

    def to_tokens(
        self, rows: Sequence[Tensor], shares: Sequence[Sequence[HeadSpan]], heads: Sequence[int], length: int
    ) -> list[Tensor]:
        """The way back: from all tokens of the own heads, `[1, h, T, D]`, to the own tokens of all heads.

        In the example of `to_heads`, rank 0 sends rank 1 that one's 5 tokens of the heads 0 and 1, is sent its own 3
        tokens of the heads 2 and 3, and so has all four heads of its 3 tokens.

        Args:
            rows: one tensor for each head span of this rank.
            shares: each rank's head spans; heads that several ranks have are summed up (gradients of a KV head).
            heads: H of each state.
            length: tokens of a state; those after the own ones, which nobody sees, are zeros.

        Returns:
            `[1, H, length, D]` for each state.
        """
        owned = self._tokens[self.rank]
        sent = self._own_heads(rows[0], shares)
        for blocks, spans in zip(sent.blocks, self.shards, strict=True):
            for block, row in zip(blocks, rows, strict=True):
                for in_row, in_shard in _places(spans):
                    block[in_shard] = row[0, :, in_row].transpose(0, 1)
        received = self._swap(sent, self._own_tokens(rows[0], shares))
        del sent
        states = [rows[0].new_zeros(length, count, rows[0].shape[3]) for count in heads]
        for blocks, share in zip(received.blocks, shares, strict=True):
            for block, (state, first, last) in zip(blocks, share, strict=True):
                states[state][:owned, first:last] += block
        return [state.transpose(0, 1)[None] for state in states]

    def _own_tokens(self, like: Tensor, shares: Sequence[Sequence[HeadSpan]]) -> _Messages:
        """Room for a message to, or from, each rank that holds this rank's tokens of that rank's heads."""
        return _Messages(like, [(self._tokens[self.rank], share) for share in shares])

    def _own_heads(self, like: Tensor, shares: Sequence[Sequence[HeadSpan]]) -> _Messages:
        """Room for a message to, or from, each rank that holds that rank's tokens of this rank's heads."""
        return _Messages(like, [(tokens, shares[self.rank]) for tokens in self._tokens])

    @property
    def _tokens(self) -> list[int]:
        """How many of the row's tokens each rank owns."""
        return [count_tokens(spans) for spans in self.shards]

    def _swap(self, sent: _Messages, received: _Messages) -> _Messages:
        dist.all_to_all_single(received.flat, sent.flat, received.sizes, sent.sizes, group=self.group)
        return received


class _Messages:
    """What one rank sends to each, or receives from each: `[t, h, D]` one after the other, in one flat tensor.

    To ranks with 2 heads each, 3 tokens of width 64 are two messages of 3 · 2 · 64 = 384 numbers.

    Args:
        like: gives width, type and device.
        messages: of each its tokens and the head spans that it holds.

    Attributes:
        flat: all of it, empty at first.
        sizes: numbers in each message.
        blocks: of each message, for each of its head spans, the view `[t, heads of the span, D]`.
    """

    def __init__(self, like: Tensor, messages: Sequence[tuple[int, Sequence[HeadSpan]]]) -> None:
        width = like.shape[3]
        widths = [[last - first for _, first, last in share] for _, share in messages]
        self.sizes = [
            tokens * sum(heads) * width for (tokens, _), heads in zip(messages, widths, strict=True)
        ]
        self.flat = like.new_empty(sum(self.sizes))
        self.blocks = [
            message.view(tokens, sum(heads), width).split(heads, dim=1)
            for message, (tokens, _), heads in zip(self.flat.split(self.sizes), messages, widths, strict=True)
        ]


def _places(spans: tuple[Span, ...]) -> Iterator[tuple[slice, slice]]:
    """Where each span of a shard lies in the row, and where among the shard's own tokens.

    A shard of (0, 2) and (6, 9) has 5 tokens: row 0 … 1 are its 0 … 1, row 6 … 8 are its 2 … 4.
    """
    edges = pairwise(accumulate((stop - start for start, stop in spans), initial=0))
    for span, own in zip(spans, edges, strict=True):
        yield slice(*span), slice(*own)


class _ToHeads(Function):
    """`Ulysses.to_heads` of queries, keys and values; the backward brings their gradients back to the tokens."""

    @staticmethod
    def forward(
        ctx: Any, exchange: Ulysses, shares: list[tuple[HeadSpan, ...]], *states: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.exchange, ctx.shares = exchange, shares
        ctx.heads, ctx.length = [state.shape[1] for state in states], states[0].shape[2]
        return tuple(exchange.to_heads(states, shares))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # type: ignore[override]
        return None, None, *ctx.exchange.to_tokens(gradients, ctx.shares, ctx.heads, ctx.length)


class _ToTokens(Function):
    """`Ulysses.to_tokens` of attention's outputs, `[H, t]` heads and tokens; the backward is `to_heads`."""

    @staticmethod
    def forward(
        ctx: Any,
        exchange: Ulysses,
        shares: list[tuple[HeadSpan, ...]],
        size: tuple[int, int],
        *outputs: Tensor,
    ) -> Tensor:
        ctx.exchange, ctx.shares = exchange, shares
        return exchange.to_tokens(outputs, shares, size[:1], size[1])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return None, None, None, *ctx.exchange.to_heads([gradient], ctx.shares)
