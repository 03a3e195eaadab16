"""Attention in several kernel calls, merged by log-sum-exp, as one differentiable function.

With s the scores of one query, calls over disjoint sets of keys give outputs o_i and log-sum-exps l_i. Over
all keys, `l = log Σ exp(l_i)` and `o = Σ exp(l_i − l) · o_i`. A kernel's backward computes the weights as
`exp(s − l)` and their gradient as `p · (dp − Σ do · o)`, so handing every call the *merged* o and l gives the
gradient of the merged attention exactly: no kernel needs a gradient of its log-sum-exp. With two calls, l_1 = 0 and
l_2 = ln 3 give l = ln 4 and o = o_1 / 4 + 3 · o_2 / 4.

Nothing is copied (keys and values are read where they lie) and no mask exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from align.longseq.kernels import Kernel, kernel_named
from align.longseq.parts import Part, unflatten


@torch.library.custom_op("align::attention_parts", mutates_args=())
def attention_parts(
    query: Tensor, key: Tensor, value: Tensor, parts: Sequence[int], scaling: float, kernel: str
) -> tuple[Tensor, Tensor]:
    """Attention over `parts` (see `parts.flatten`) by the named kernel, without gradient.

    An operator of its own, so that checkpointing can keep what it returns (keep_attention.py): one output and
    one log-sum-exp, whatever the number of calls.

    Returns:
        `[1, h, Q, D]` and, in the kernel's precision, `[1, h, Q]`.
    """
    return _run(query, key, value, unflatten(list(parts)), scaling, kernel_named(kernel))


@attention_parts.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, parts: Sequence[int], scaling: float, kernel: str
) -> tuple[Tensor, Tensor]:
    precision = torch.promote_types(query.dtype, torch.float32)
    return _token_major(query), query.new_empty(query.shape[:3], dtype=precision)


def _token_major(like: Tensor) -> Tensor:
    """Empty `[1, h, Q, D]` whose memory runs `[1, Q, h, D]`, which is what the layer reads next."""
    return like.new_empty(like.shape[0], like.shape[2], like.shape[1], like.shape[3]).transpose(1, 2)


def _calls(parts: Sequence[Part], kernel: Kernel) -> Sequence[Part]:
    """Parts as the kernel takes them: several squares in one call, or a call each."""
    return parts if kernel.varlen else [one for part in parts for one in part.each()]


def _run(
    query: Tensor, key: Tensor, value: Tensor, parts: Sequence[Part], scaling: float, kernel: Kernel
) -> tuple[Tensor, Tensor]:
    precision = torch.promote_types(query.dtype, torch.float32)
    output = _token_major(query)
    lse = query.new_empty(query.shape[:3], dtype=precision)
    for part in _calls(parts, kernel):
        queries, keys = slice(*part.queries), slice(*part.keys)
        part_output, part_lse = kernel.forward(
            query[:, :, queries], key[:, :, keys], value[:, :, keys], part.squares, scaling
        )
        here, here_lse = output[:, :, queries], lse[:, :, queries]
        if part.squares:
            # The squares come first and hold every query once.
            here.copy_(part_output)
            here_lse.copy_(part_lse)
        else:
            weight = torch.sigmoid(part_lse - here_lse)[..., None]  # exp(l_part − l)
            here.copy_(torch.lerp(here.to(precision), part_output.to(precision), weight))
            here_lse.copy_(torch.logaddexp(here_lse, part_lse))
    return output, lse


class MergedAttention(Function):
    """`apply(query, key, value, parts, scaling, kernel) -> output`; shapes as in `attention.attend`."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: list[int], scaling: float, kernel: str
    ) -> Tensor:
        """The merged output."""
        output, lse = attention_parts(query, key, value, parts, scaling, kernel)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.parts, ctx.scaling, ctx.kernel = parts, scaling, kernel
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        """Every call's backward from the merged output and log-sum-exp."""
        query, key, value, output, lse = ctx.saved_tensors
        kernel = kernel_named(ctx.kernel)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for part in _calls(unflatten(ctx.parts), kernel):
            queries, keys = slice(*part.queries), slice(*part.keys)
            part_query, part_key, part_value = kernel.backward(
                gradient[:, :, queries],
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                output[:, :, queries],
                lse[:, :, queries],
                part.squares,
                ctx.scaling,
            )
            if part.squares:
                grad_query[:, :, queries] = part_query
            else:
                grad_query[:, :, queries] += part_query
            grad_key[:, :, keys] += part_key
            grad_value[:, :, keys] += part_value
        return grad_query, grad_key, grad_value, None, None, None
