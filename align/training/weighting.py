"""How much each prompt counts in the loss of a step: as much as any other, or as many tokens as its answer has."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from align.longseq.shared_prefix import SharedPrefixBatch


def _one(lengths: Tensor) -> Tensor:
    return torch.ones_like(lengths)


def _tokens(lengths: Tensor) -> Tensor:
    return lengths


# `needs.weighting` → a prompt's weight, from the scored tokens of its chosen answer (of all its turns).
_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {"prompt": _one, "token": _tokens}


def prompt_weights(inputs: dict[str, Any], weighting: str) -> Tensor:
    """`[B]` integer weights; the loss of a step is `Σ weight · loss / Σ weight` over its prompts.

    The sum in the divisor goes over the whole step (accumulation and data-parallel groups), so that packing,
    micro-batches and processes do not change what a prompt or a token counts.

    Args:
        inputs: a micro-batch: `batch`, and `real` `[B]`, False for placeholders, whose weight is 0.
        weighting: `needs.weighting` of the method.
    """
    batch: SharedPrefixBatch = inputs["batch"]
    lengths = torch.cat([row.lengths[:, 0] for row in batch.rows])
    real: Tensor = inputs["real"]
    return _WEIGHTS[weighting](lengths) * real.to(lengths.device)


def real_tokens(inputs: dict[str, Any]) -> int:
    """Tokens of a micro-batch's prompts with their answers; placeholders have none."""
    batch: SharedPrefixBatch = inputs["batch"]
    return sum(compress(batch.prompt_tokens, inputs["real"].tolist()))
