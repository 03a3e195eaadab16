"""Attention in several kernel calls, merged by log-sum-exp, as one differentiable function.

With s the scores of one query, calls over disjoint sets of keys give outputs o_i and log-sum-exps l_i. Over
all keys, `l = log Σ exp(l_i)` and `o = Σ exp(l_i − l) · o_i`. A kernel's backward computes the weights as
`exp(s − l)` and their gradient as `p · (dp − Σ do · o)`, so handing every call the *merged* o and l gives the
gradient of the merged attention exactly: no kernel needs a gradient of its log-sum-exp. With two calls, l_1 = 0 and
l_2 = ln 3 give l = ln 4 and o = o_1 / 4 + 3 · o_2 / 4.

A *sink* is a logit of a head that joins every query's softmax and has no value (gpt-oss): one more call, whose output
is 0 and whose log-sum-exp is the sink. So `o ← o · σ(l − s)` and `l ← log(exp(l) + exp(s))`, the kernels' gradients
follow as above, and the sink's own is `−Σ_t exp(s − l_t) · (do_t · o_t)`.

Nothing is copied (keys and values are read where they lie), but for mirrored squares, whose tokens are reversed on
their way to the kernel and back. No mask exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from align.longseq.head_slices import head_slices
from align.longseq.kept import kept
from align.longseq.kernel import Kernel
from align.longseq.kernels import kernel_named
from align.longseq.logps import sum_dtype
from align.longseq.parts import Call, Part, unflatten
from align.longseq.shared_prefix import Span


@torch.library.custom_op("align::attention_parts", mutates_args=())
def attention_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    parts: Sequence[int],
    scaling: float,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    """Attention over `parts` (see `parts.flatten`) by the named kernel, without gradient.

    An operator of its own, so that a plan can count a layer on tensors without numbers without its many calls.

    Returns:
        `[1, h, Q, E]`, as wide as the values, and, in the kernel's precision, `[1, h, Q]`.
    """
    output, lse = run_parts(query, key, value, unflatten(list(parts)), scaling, kernel_named(kernel))
    if sinks is not None:
        _add_sinks(output, lse, sinks)
    return output, lse


@attention_parts.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    parts: Sequence[int],
    scaling: float,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    precision = torch.promote_types(query.dtype, torch.float32)
    return _token_major(query, value), query.new_empty(query.shape[:3], dtype=precision)


def _token_major(query: Tensor, value: Tensor) -> Tensor:
    """Empty `[1, h, Q, E]` whose memory runs `[1, Q, h, E]`, which is what the layer reads next."""
    batch, heads, length, _ = query.shape
    return query.new_empty(batch, length, heads, value.shape[3]).transpose(1, 2)


def _calls(parts: Sequence[Part], kernel: Kernel) -> Sequence[Call]:
    """Parts as the kernel takes them: squares of any sizes in one call, or a call for each run of equal ones."""
    if kernel.varlen:
        return [Call(part) for part in parts]
    return [call for part in parts for call in part.each(kernel.halved)]


def _view(states: Tensor, span: Span, call: Call) -> Tensor:
    """What `span` takes of `[1, h, T, …]`, and as often as the call repeats: a view `[count, h, n, …]`."""
    start, size = span[0], span[1] - span[0]
    if call.count == 1:
        return states.narrow(2, start, size)
    reach = states.squeeze(0).narrow(1, start, size + (call.count - 1) * call.step)
    return reach.unfold(1, size, call.step).movedim((1, -1), (0, 2))


def _taken(states: Tensor, span: Span, call: Call) -> Tensor:
    """`_view` as the kernel reads it: where it lies, or a reversed copy."""
    tokens = _view(states, span, call)
    return tokens.flip(2) if call.part.mirrored else tokens


def _sizes(part: Part) -> tuple[int, ...]:
    """The squares' sizes in the order in which the kernel meets them."""
    return part.squares[::-1] if part.mirrored else part.squares


def run_parts(
    query: Tensor, key: Tensor, value: Tensor, parts: Sequence[Part], scaling: float, kernel: Kernel
) -> tuple[Tensor, Tensor]:
    """Merged output and log-sum-exp of `parts`, of which the squares come first; shapes as in `attention_parts`."""
    precision = torch.promote_types(query.dtype, torch.float32)
    output = _token_major(query, value)
    lse = query.new_empty(query.shape[:3], dtype=precision)
    for call in _calls(parts, kernel):
        for heads, kv_heads in _slices(query, key, call):
            states = _of(query, heads), _of(key, kv_heads), _of(value, kv_heads)
            _merge(_of(output, heads), _of(lse, heads), *states, call, scaling, kernel)
    return output, lse


def _merge(
    output: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: Call,
    scaling: float,
    kernel: Kernel,
) -> None:
    """Adds one call's keys to the softmax of its queries, in `output` and `lse`."""
    part, precision = call.part, lse.dtype
    found, found_lse = kernel.forward(
        _taken(query, part.queries, call),
        _taken(key, part.keys, call),
        _taken(value, part.keys, call),
        _sizes(part),
        scaling,
    )
    if part.mirrored:
        found, found_lse = found.flip(2), found_lse.flip(2)
    here, here_lse = _view(output, part.queries, call), _view(lse, part.queries, call)
    if part.squares and not part.mirrored:
        # These squares come first and hold every query once.
        here.copy_(found)
        here_lse.copy_(found_lse)
    else:
        weight = torch.sigmoid(found_lse - here_lse)[..., None]  # exp(l_part − l)
        here.copy_(here.to(precision).lerp_(found.to(precision), weight))  # fp32 is merged where it lies
        here_lse.copy_(torch.logaddexp(here_lse, found_lse))


def _slices(query: Tensor, key: Tensor, call: Call) -> tuple[tuple[Span, Span], ...]:
    """Heads that a call goes over at once, of those that it is for."""
    own, own_kv = call.part.heads or ((0, query.shape[1]), (0, key.shape[1]))
    heads, kv_heads = own[1] - own[0], own_kv[1] - own_kv[0]
    tokens = sum(stop - start for start, stop in (call.part.queries, call.part.keys)) * call.count
    return tuple(
        (_from(own[0], some), _from(own_kv[0], some_kv))
        for some, some_kv in head_slices(heads, kv_heads, tokens * heads * query.shape[3])
    )


def _from(first: int, span: Span) -> Span:
    """A span that is counted from `first`, counted from 0."""
    return first + span[0], first + span[1]


def _of(states: Tensor, heads: Span) -> Tensor:
    """Some heads of `[1, h, …]`, where they lie."""
    return states.narrow(1, heads[0], heads[1] - heads[0])


def _add_sinks(output: Tensor, lse: Tensor, sinks: Tensor) -> None:
    """Lets each head's sink join the softmax, in place: output `[1, h, Q, E]`, log-sum-exp `[1, h, Q]`, sinks `[h]`."""
    logits = sinks.to(lse.dtype)[None, :, None]
    output.mul_(torch.sigmoid(lse - logits)[..., None])
    lse.copy_(torch.logaddexp(lse, logits))


def run_parts_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    parts: Sequence[Part],
    scaling: float,
    kernel: Kernel,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value: every call's backward from the merged output and log-sum-exp."""
    grad_query = torch.empty_like(query)
    grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
    for call in _calls(parts, kernel):
        for heads, kv_heads in _slices(query, key, call):
            of_queries = [_of(one, heads) for one in (grad_query, gradient, query, output, lse)]
            of_keys = [_of(one, kv_heads) for one in (grad_key, grad_value, key, value)]
            _add_gradients(of_queries, of_keys, call, scaling, kernel)
    return grad_query, grad_key, grad_value


def _add_gradients(
    of_queries: Sequence[Tensor], of_keys: Sequence[Tensor], call: Call, scaling: float, kernel: Kernel
) -> None:
    """Adds one call's part to the gradients of its queries, keys and values, the first of what comes."""
    part, (grad_query, gradient, query, output, lse) = call.part, of_queries
    grad_key, grad_value, key, value = of_keys
    found = kernel.backward(
        _taken(gradient, part.queries, call),
        _taken(query, part.queries, call),
        _taken(key, part.keys, call),
        _taken(value, part.keys, call),
        _taken(output, part.queries, call),
        _taken(lse, part.queries, call),
        _sizes(part),
        scaling,
    )
    of_query, of_key, of_value = (one.flip(2) for one in found) if part.mirrored else found
    if part.squares and not part.mirrored:
        _view(grad_query, part.queries, call).copy_(of_query)
    else:
        _view(grad_query, part.queries, call).add_(of_query)
    _view(grad_key, part.keys, call).add_(of_key)
    _view(grad_value, part.keys, call).add_(of_value)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within it products have the precision of what they multiply."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class MergedAttention(Function):
    """`apply(query, key, value, sinks, parts, scaling, kernel) -> output`; shapes as in `attention.attend`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        parts: list[int],
        scaling: float,
        kernel: str,
    ) -> Tensor:
        """The merged output."""
        # States have autocast's precision already; what a kernel computes in fp32 must stay so.
        with without_autocast(query.device):
            output, lse = kept(lambda: attention_parts(query, key, value, sinks, parts, scaling, kernel))
        ctx.save_for_backward(query, key, value, sinks, output, lse)
        ctx.parts, ctx.scaling, ctx.kernel = parts, scaling, kernel
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        """Every call's backward from the merged output and log-sum-exp."""
        query, key, value, sinks, output, lse = ctx.saved_tensors
        kernel = kernel_named(ctx.kernel)
        with without_autocast(query.device):
            found = run_parts_backward(
                gradient, query, key, value, output, lse, unflatten(ctx.parts), ctx.scaling, kernel
            )
        grad_sinks = None if sinks is None else _sinks_gradient(gradient, sinks, output, lse)
        return *found, grad_sinks, None, None, None


def _sinks_gradient(gradient: Tensor, sinks: Tensor, output: Tensor, lse: Tensor) -> Tensor:
    """`[h]`, summed over the tokens in fp64 where there is one."""
    weight = (sinks.to(lse.dtype)[None, :, None] - lse).exp()
    moved = (gradient.to(lse.dtype) * output.to(lse.dtype)).sum(3)
    return -(weight * moved).sum((0, 2), dtype=sum_dtype(lse.device)).to(sinks.dtype)
