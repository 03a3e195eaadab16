"""Attention on tensors of more than 2³¹ elements, where an index of 32 bits ends: some queries held against fp64.

The gradient of the output is 0 but at a few queries, so that those queries alone, in fp64, give every gradient. The row
is a prompt and an answer: in bf16 the prompt is one causal square; in fp32, whose products are slow, it has a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from align.longseq.attention import attend, attend_plain, prepare
from align.patterns.pattern import FULL, Pattern, Window
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import GIB
from benchmarks.gpu.exactness import error_of
from benchmarks.gpu.kernel_cases import BOUNDS, layout_of

WIDTH, ANSWER, SAMPLED = 128, 64, 4
# Tensors of the query's size that exist at once: query, output, their gradients, what a kernel needs; in fp32, where
# heads are expanded, keys and values too, and with a window copies of blocks.
TENSORS = {torch.bfloat16: 10, torch.float32: 14}


def large(context: Context, kernel: str, dtype: torch.dtype) -> dict[str, Any]:
    """Relative errors of the sampled outputs and of the gradients; a sentence where the card is too small."""
    heads, prompt = context.of_scale((64, 2**18), (2, 96))
    elements = heads * (prompt + ANSWER) * WIDTH
    need, room = TENSORS[dtype] * elements * dtype.itemsize / GIB, context.device.room_gib()
    if room is not None and need > room:
        return {"skipped": f"needs {need:.0f} GiB, and the card has {room:.0f}"}
    pattern: Pattern = Window(context.of_scale(1024, 16)) if dtype == torch.float32 else FULL
    errors = _errors(kernel, dtype, pattern, heads, prompt, context.device.torch)
    return {"elements": elements, "pattern": str(pattern), "worst": errors, "bound": BOUNDS[dtype]} | {
        "passed": max(errors.values()) <= BOUNDS[dtype]
    }


def _errors(
    kernel: str, dtype: torch.dtype, pattern: Pattern, heads: int, prompt: int, device: torch.device
) -> dict[str, float]:
    torch.manual_seed(0)
    layout = layout_of(((prompt, (ANSWER,)),))
    length = layout.length
    query = torch.randn(1, heads, length, WIDTH, device=device, dtype=dtype).requires_grad_()
    key, value = (
        torch.randn(1, 1, length, WIDTH, device=device, dtype=dtype).requires_grad_() for _ in range(2)
    )
    # The first ones, some of the prompt's last, and the answer's last.
    spans = ((0, SAMPLED), (prompt - SAMPLED, prompt), (length - SAMPLED, length))
    gradient = torch.zeros_like(query)
    for start, stop in spans:
        gradient[:, :, start:stop].normal_()
    output = attend(query, key, value, layout=prepare(layout), kernel=kernel, pattern=pattern)
    found = torch.autograd.grad(output, (query, key, value), gradient)

    def sampled(states: Tensor) -> Tensor:
        return torch.cat([states[:, :, start:stop] for start, stop in spans], dim=2).double()

    exact = [
        sampled(query.detach()).requires_grad_(),
        *(one.detach().double().requires_grad_() for one in (key, value)),
    ]
    expected, grads = _exactly(exact, sampled(gradient), prepare(layout, queries=spans), pattern)
    actual = (sampled(output.detach()), sampled(found[0]), found[1].double(), found[2].double())
    return {
        name: error_of(one, wanted)
        for name, one, wanted in zip(
            ("output", "query", "key", "value"), actual, (expected, *grads), strict=True
        )
    }


def _exactly(
    leaves: list[Tensor], gradient: Tensor, layout: Any, pattern: Pattern
) -> tuple[Tensor, list[Tensor]]:
    """Outputs and gradients by the plain path, a few heads at a time: it copies keys for each of them."""
    query, key, value = leaves
    outputs, grads = [], [torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)]
    for start in range(0, query.shape[1], 8):
        output = attend_plain(query[:, start : start + 8], key, value, layout=layout, pattern=pattern)
        outputs.append(output.detach())
        own = torch.autograd.grad(output, leaves, gradient[:, start : start + 8])
        grads = [total + one for total, one in zip(grads, own, strict=True)]
    return torch.cat(outputs, dim=1), grads
