"""The all-to-all exchange: from a rank's own tokens of all heads to all tokens of its own heads, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

# Some heads of one of the states that travel together: which state, its first head, the one after the last.
Piece = tuple[int, int, int]


@dataclass(frozen=True)
class HeadShare:
    """One rank's heads under `Ulysses`: query heads `[query[0], query[1])`, and the KV heads that they read.

    A KV head whose query heads lie on two ranks is copied to both.
    """

    query: tuple[int, int]
    kv: tuple[int, int]

    def runs(self, queries_per_kv: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Spans of this rank's own query and KV heads with equally many query heads for each KV head."""
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

    def pieces(self, queries_per_kv: int) -> tuple[Piece, ...]:
        """Queries (state 0), keys (1) and values (2) of each run; no queries at all where the rank has no heads."""
        query, kv = self.query[0], self.kv[0]
        found: list[Piece] = []
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

    What rank a, who owns t_a tokens, and rank b, whose pieces have h_b heads in all, send each other is one
    `[t_a, h_b, D]`, there with queries, keys and values, back with outputs. Both ways write states where they
    stay: beside them there is one copy on its way out and one on its way in.

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
        shares = [share.pieces(heads // kv_heads) for share in share_heads(heads, kv_heads, len(self.shards))]
        pieces = _ToHeads.apply(self, shares, query, key, value)
        outputs = [attend(*pieces[run : run + 3]) for run in range(0, len(pieces) // 3 * 3, 3)]
        queries = [tuple(piece for piece in share if piece[0] == 0) for share in shares]
        # A rank without heads hands on its no queries, so that it takes part in the backward pass.
        output: Tensor = _ToTokens.apply(self, queries, query.shape[1:3], *(outputs or pieces))
        return output

    def to_heads(self, states: Sequence[Tensor], shares: Sequence[Sequence[Piece]]) -> list[Tensor]:
        """`[1, H, ≥ t, D]`, states of the own tokens → `[1, h, T, D]`, of all tokens, for each piece of the own share.

        Args:
            states: which pieces refer to.
            shares: each rank's pieces.
        """
        own, owned = shares[self.rank], self._tokens[self.rank]
        sent = _Messages(states[0], [(owned, share) for share in shares])
        for blocks, share in zip(sent.blocks, shares, strict=True):
            for block, (state, first, last) in zip(blocks, share, strict=True):
                block.copy_(states[state][0, first:last, :owned].transpose(0, 1))
        received = self._swap(sent, _Messages(states[0], [(tokens, own) for tokens in self._tokens]))
        del sent
        pieces = [
            states[0].new_empty(sum(self._tokens), last - first, states[0].shape[3]) for _, first, last in own
        ]
        for blocks, spans in zip(received.blocks, self.shards, strict=True):
            for block, piece in zip(blocks, pieces, strict=True):
                for (start, stop), (low, high) in zip(spans, _places(spans), strict=True):
                    piece[start:stop] = block[low:high]
        return [piece.transpose(0, 1)[None] for piece in pieces]

    def to_tokens(
        self, pieces: Sequence[Tensor], shares: Sequence[Sequence[Piece]], heads: Sequence[int], length: int
    ) -> list[Tensor]:
        """The way back: `[1, h, T, D]` → `[1, H, length, D]` for each state.

        Args:
            pieces: of the own share.
            shares: each rank's pieces; heads that several ranks have are summed up.
            heads: H of each state.
            length: tokens; zeros for those after the own ones, which nobody sees.
        """
        own, owned = shares[self.rank], self._tokens[self.rank]
        sent = _Messages(pieces[0], [(tokens, own) for tokens in self._tokens])
        for blocks, spans in zip(sent.blocks, self.shards, strict=True):
            for block, piece in zip(blocks, pieces, strict=True):
                for (start, stop), (low, high) in zip(spans, _places(spans), strict=True):
                    block[low:high] = piece[0, :, start:stop].transpose(0, 1)
        received = self._swap(sent, _Messages(pieces[0], [(owned, share) for share in shares]))
        del sent
        states = [pieces[0].new_zeros(length, count, pieces[0].shape[3]) for count in heads]
        for blocks, share in zip(received.blocks, shares, strict=True):
            for block, (state, first, last) in zip(blocks, share, strict=True):
                states[state][:owned, first:last] += block
        return [state.transpose(0, 1)[None] for state in states]

    @property
    def _tokens(self) -> list[int]:
        return [count_tokens(spans) for spans in self.shards]

    def _swap(self, sent: _Messages, received: _Messages) -> _Messages:
        dist.all_to_all_single(received.flat, sent.flat, received.sizes, sent.sizes, group=self.group)
        return received


class _Messages:
    """What one rank sends to each, or receives from each: `[t, h, D]` one after the other, in one flat tensor.

    Attributes:
        flat: all of it, empty at first.
        sizes: numbers in each message.
        blocks: of each message the part `[t, h_p, D]` of each piece.
    """

    def __init__(self, like: Tensor, messages: Sequence[tuple[int, Sequence[Piece]]]) -> None:
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


def _places(spans: tuple[Span, ...]) -> Iterable[Span]:
    """Where each span lies among the tokens of all of them."""
    return pairwise(accumulate((stop - start for start, stop in spans), initial=0))


class _ToHeads(Function):
    """`Ulysses.to_heads` of queries, keys and values; the backward brings their gradients back to the tokens."""

    @staticmethod
    def forward(
        ctx: Any, exchange: Ulysses, shares: list[tuple[Piece, ...]], *states: Tensor
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
        ctx: Any, exchange: Ulysses, shares: list[tuple[Piece, ...]], size: tuple[int, int], *outputs: Tensor
    ) -> Tensor:
        ctx.exchange, ctx.shares = exchange, shares
        return exchange.to_tokens(outputs, shares, size[:1], size[1])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return None, None, None, *ctx.exchange.to_heads([gradient], ctx.shares)
