"""How much each prompt counts in the loss of a step: as much as any other, or as many tokens as are scored of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align.longseq.moving import HOST, move_together

if TYPE_CHECKING:
    from align.longseq.shared_prefix import SharedPrefixBatch, SharedPrefixRow


def _one(row: SharedPrefixRow) -> Tensor:
    return torch.ones_like(row.lengths[:, 0])


def _tokens(row: SharedPrefixRow) -> Tensor:
    return row.lengths[:, 0]


def _sequence(row: SharedPrefixRow) -> Tensor:
    return row.lengths[:, 0] + row.context_length


# `needs.weighting` → `[b]` weights of a row's prompts: 1, the scored tokens of the chosen answer (of all its turns), or
# those that an NLL over prompt and chosen answer averages over.
_WEIGHTS: dict[str, Callable[[SharedPrefixRow], Tensor]] = {
    "prompt": _one,
    "token": _tokens,
    "sequence": _sequence,
}


def prompt_weights(inputs: dict[str, Any], weighting: str) -> Tensor:
    """`[B]` integer weights, on the CPU; the loss of a step is `Σ weight · loss / Σ weight` over its prompts.

    The sum in the divisor goes over the whole step (accumulation and data-parallel groups), so that packing,
    micro-batches and processes do not change what a prompt or a token counts.

    Args:
        inputs: a micro-batch: `batch`, and `real` `[B]`, False for placeholders, whose weight is 0.
        weighting: `needs.weighting` of the method.
    """
    batch: SharedPrefixBatch = inputs["batch"]
    weights = torch.cat([_WEIGHTS[weighting](row.host) for row in batch.rows])
    return weights * torch.as_tensor(inputs["real"], device=HOST)


def marks_on(device: torch.device, inputs: dict[str, Any], weights: Tensor) -> tuple[Tensor, Tensor]:
    """`[B]` which prompts are real, and `[B]` their `weights`, on `device`; in one copy, which nobody waits for."""
    real = torch.as_tensor(inputs["real"], device=HOST)
    marks, moved = move_together([real.to(weights.dtype), weights], device)
    return marks > 0, moved


def held_out_columns(metrics: Tensor, inputs: dict[str, Any], weighting: str, *, counts: bool) -> Tensor:
    """`[B, columns + 2]`: each prompt's metrics `[B, columns]`, its loss's weight, and 1 where it counts, else 0.

    Args:
        metrics: on the device, which is not waited for.
        inputs: the micro-batch, of which placeholders do not count.
        weighting: `needs.weighting` of the method.
        counts: whether any of it does here: the ranks of a group hold the same.
    """
    real, weights = marks_on(metrics.device, inputs, prompt_weights(inputs, weighting))
    return torch.cat([metrics, torch.stack([weights, real * counts], dim=1).to(metrics)], dim=1)


def real_tokens(inputs: dict[str, Any]) -> int:
    """Tokens of a micro-batch's prompts with their answers; placeholders have none."""
    batch: SharedPrefixBatch = inputs["batch"]
    return sum(compress(batch.prompt_tokens, inputs["real"].tolist()))
