"""Collectives with a backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


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

    Two ranks whose own parts of a gradient are 3 and 5 get 2 · 3 and 2 · 5; their mean is 8, the whole.
    """
    return _AllReduceSum.apply(values, group)
