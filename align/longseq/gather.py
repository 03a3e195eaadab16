"""The all-gather exchange: every rank gets all tokens' keys and values, and attends with its own queries of all heads.

The context parallelism of Llama 3 (arXiv:2407.21783, section 3.3.2); any number of heads. With a row of 8,000 tokens on
4 ranks, a rank comes with 2,000 tokens, attends with their queries to all 8,000 keys, and leaves with 2,000 outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from align.longseq.attention import Attend
from align.longseq.moving import to_device
from align.longseq.sharding import Shards, count_tokens, token_index

# torch 2.13 renamed them.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Gather:
    """Own queries, all heads.

    With a row of 8,000 tokens on 4 ranks, a rank comes with keys and values of 2,000 tokens and is given those of all
    8,000; its 2,000 queries stay where they are.

    Attributes:
        group: the sequence-parallel group, n ranks.
        owned: tokens that this rank owns.
        longest: tokens of the longest shard, to which all are padded.
        order: `[T]` where in the gathered `[n · longest]` each of the row's tokens lies. Shards of (0, 2), (4, 5) and
            of (2, 4): `longest` is 3 and `order` is 0, 1, 3, 4, 2.
    """

    group: dist.ProcessGroup
    owned: int
    longest: int
    order: Tensor

    @classmethod
    def over(cls, group: dist.ProcessGroup, rank: int, shards: Shards, device: torch.device) -> Gather:
        """For a row whose tokens the ranks own as `shards` says."""
        tokens = [count_tokens(spans) for spans in shards]
        longest = max(tokens)
        order = torch.empty(sum(tokens), dtype=torch.long)
        for start, spans, count in zip(range(0, longest * len(tokens), longest), shards, tokens, strict=True):
            order[token_index(spans)] = torch.arange(start, start + count)
        return cls(group, tokens[rank], longest, to_device(order, device))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """`[1, H, t, D]`, `[1, H_kv, t, D]` twice → `[1, H, t, D]`, t the own tokens and those nobody sees."""
        keys, values = _GatherRow.apply(self, key, value)
        output = attend(query[:, :, : self.owned], keys, values)
        # Zeros for the tokens at the end that nobody sees.
        return torch.nn.functional.pad(output, (0, 0, 0, query.shape[2] - self.owned))


class _GatherRow(Function):
    """Keys and values of the own tokens, `[1, K, ≥ t, D]` each → of the row, `[1, K, T, D]` each.

    The backward sums the gradients over ranks and keeps the own tokens'. They are written where they are sent
    from: autograd's own way through these steps would make another copy of the row's.
    """

    @staticmethod
    def forward(ctx: Any, exchange: Gather, *states: Tensor) -> tuple[Tensor, ...]:
        ctx.exchange, ctx.length = exchange, states[0].shape[2]
        _, heads, _, width = states[0].shape
        own = states[0].new_zeros(exchange.longest, 2 * heads, width)
        for part, state in zip(own.split(heads, dim=1), states, strict=True):
            part[: exchange.owned] = state[0, :, : exchange.owned].transpose(0, 1)
        degree = dist.get_world_size(exchange.group)
        gathered = own.new_empty(degree * exchange.longest, 2 * heads, width)
        _all_gather(gathered, own, group=exchange.group)
        return tuple(
            part.index_select(0, exchange.order).transpose(0, 1)[None]
            for part in gathered.split(heads, dim=1)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # type: ignore[override]
        exchange: Gather = ctx.exchange
        _, heads, _, width = gradients[0].shape
        degree = dist.get_world_size(exchange.group)
        sent = gradients[0].new_zeros(degree * exchange.longest, 2 * heads, width)
        for part, gradient in zip(sent.split(heads, dim=1), gradients, strict=True):
            part.index_copy_(0, exchange.order, gradient[0].transpose(0, 1))
        own = sent.new_empty(exchange.longest, 2 * heads, width)
        _reduce_scatter(own, sent, group=exchange.group)
        del sent
        found = [own.new_zeros(ctx.length, heads, width) for _ in gradients]
        for state, part in zip(found, own.split(heads, dim=1), strict=True):
            state[: exchange.owned] = part[: exchange.owned]
        return None, *(state.transpose(0, 1)[None] for state in found)
