"""Two ways to bring keys and values to the queries that need them, across a sequence-parallel group.

Both take a shard's states, run the attention that one process runs, and return the shard's output:

- `Ulysses`: all-to-all, after which a rank holds *all tokens of some heads*; a second all-to-all brings the
  output back (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv:2309.14509). Heads need not be divisible.
- `Gather`: all-gather of keys and values, after which a rank attends with *its own queries of all heads*
  (the context parallelism of Llama 3, arXiv:2407.21783, section 3.3.2). Any number of heads.

Every rank runs the same collectives in the same order, forward and backward, whatever it owns: a rank
without tokens or heads sends and receives nothing but takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from align.longseq.attention import Attend

# torch 2.13 renamed them.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _AllToAll(Function):
    """Flat all-to-all with uneven parts; the backward swaps sent and received."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        received = flat.new_empty(sum(receive))
        dist.all_to_all_single(received, flat.contiguous(), receive, send, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return _AllToAll.apply(gradient, ctx.receive, ctx.send, ctx.group), None, None, None


class _AllGather(Function):
    """`[L, …]` of each of n ranks → `[n·L, …]`; the backward sums over ranks and keeps the own part."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, group: Any) -> Tensor:
        ctx.group = group
        degree = dist.get_world_size(group)
        gathered = states.new_empty(degree * states.shape[0], *states.shape[1:])
        _all_gather(gathered, states.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        degree = dist.get_world_size(ctx.group)
        own = gradient.new_empty(gradient.shape[0] // degree, *gradient.shape[1:])
        _reduce_scatter(own, gradient.contiguous(), group=ctx.group)
        return own, None


class _AllReduceSum(Function):
    """Sum over the ranks; the backward is the same sum over the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return _AllReduceSum.apply(gradient, ctx.group), None


def all_reduce_sum(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of `values` over the group, with an all-reduce as its backward.

    Every rank computes the same loss L from it. With n ranks the backward hands each rank n · ∂L/∂values, so
    its parameter gradients are n times its own part of the true one. The mean over the world, which DDP, FSDP
    and ZeRO take, is then the true gradient, and the norm that they clip is the true norm: no factor anywhere.
    """
    return _AllReduceSum.apply(values, group)


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

    Attributes:
        group: the sequence-parallel group, n ranks.
        rank: this process's rank in it.
        tokens: how many consecutive tokens each rank owns, T in all.
    """

    group: dist.ProcessGroup
    rank: int
    tokens: tuple[int, ...]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """`[1, H, t, D]`, `[1, H_kv, t, D]` twice → `[1, H, t, D]`, t the own tokens and those nobody sees."""
        heads, kv_heads = query.shape[1], key.shape[1]
        shares = share_heads(heads, kv_heads, len(self.tokens))
        own = shares[self.rank]
        owned = self.tokens[self.rank]
        own_heads, own_kv = own.query[1] - own.query[0], own.kv[1] - own.kv[0]
        query_, key_, value_ = (states[0, :, :owned] for states in (query, key, value))
        parts = [
            torch.cat([query_[slice(*share.query)], key_[slice(*share.kv)], value_[slice(*share.kv)]])
            for share in shares
        ]
        fused = self._swap(parts)
        queries, keys, values = fused.split([own_heads, own_kv, own_kv])
        outputs = [
            attend(queries[None, a:b], keys[None, c:d], values[None, c:d])[0]
            for (a, b), (c, d) in own.runs(heads // kv_heads)
        ]
        output = torch.cat(outputs) if outputs else queries
        everyone = self._swap_back(output, [share.query[1] - share.query[0] for share in shares])
        return _pad_tokens(everyone[None], query.shape[2])

    def _swap(self, parts: list[Tensor]) -> Tensor:
        """Sends `parts[i]` `[h_i, t, D]` to rank i; returns `[h, T, D]`, all tokens of the own heads."""
        rows, _, width = parts[self.rank].shape
        receive = [rows * tokens * width for tokens in self.tokens]
        flat = torch.cat([part.flatten() for part in parts])
        received = _AllToAll.apply(flat, [part.numel() for part in parts], receive, self.group)
        pieces = received.split(receive)
        return torch.cat(
            [piece.view(rows, tokens, width) for piece, tokens in zip(pieces, self.tokens, strict=True)],
            dim=1,
        )

    def _swap_back(self, output: Tensor, heads: list[int]) -> Tensor:
        """`[h, T, D]`, all tokens of the own heads → `[H, t, D]`, all heads of the own tokens."""
        owned, width = self.tokens[self.rank], output.shape[2]
        parts = output.split(self.tokens, dim=1)
        flat = torch.cat([part.flatten() for part in parts])
        receive = [count * owned * width for count in heads]
        received = _AllToAll.apply(flat, [part.numel() for part in parts], receive, self.group)
        return received.view(sum(heads), owned, width)


@dataclass(frozen=True)
class Gather:
    """Own queries, all heads.

    Attributes:
        group: the sequence-parallel group, n ranks.
        owned: tokens that this rank owns.
        longest: tokens of the longest shard, to which all are padded.
        order: `[T]` where in the gathered `[n · longest]` each of the row's tokens lies.
    """

    group: dist.ProcessGroup
    owned: int
    longest: int
    order: Tensor

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """`[1, H, t, D]`, `[1, H_kv, t, D]` twice → `[1, H, t, D]`, t the own tokens and those nobody sees."""
        fused = torch.cat([key, value], dim=1)[0, :, : self.owned].transpose(0, 1)
        padding = fused.new_zeros(self.longest - self.owned, *fused.shape[1:])
        gathered = _AllGather.apply(torch.cat([fused, padding]), self.group)
        row = gathered.index_select(0, self.order).transpose(0, 1)[None]
        keys, values = row.chunk(2, dim=1)
        return _pad_tokens(attend(query[:, :, : self.owned], keys, values), query.shape[2])


def _pad_tokens(output: Tensor, length: int) -> Tensor:
    """`[1, H, length, D]`: zeros for the tokens at the end that nobody sees."""
    return torch.nn.functional.pad(output, (0, 0, 0, length - output.shape[2]))
