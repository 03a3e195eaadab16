"""Log-probs of scored tokens only, a chunk of vocabulary logits at a time, in fp32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_logps(head: Callable[[Tensor], Tensor], hidden: Tensor, target: Tensor, *, chunks: int) -> Tensor:
    """Log-probability of each target token, in nats.

    The `[S / chunks, V]` logits exist for one chunk at a time, in the backward pass too (they are recomputed).

    Args:
        head: maps `[n, H]` hidden states to `[n, V]` logits: the model's output embedding.
        hidden: `[S, H]` the hidden states that predict the targets; S = 0 still calls the head, so that this
            process takes part in the backward pass.
        target: `[S]` token ids.
        chunks: how often the head is called; a chunk's memory is `⌈S / chunks⌉ · V · 4` bytes, a few times.

    Returns:
        `[S]`, fp32 (fp64 for an fp64 model).
    """
    pieces = [
        checkpoint(_chunk_logps, head, part, ids, use_reentrant=False)
        for part, ids in zip(hidden.tensor_split(chunks), target.tensor_split(chunks), strict=True)
    ]
    return torch.cat(pieces)


def sum_by_index(values: Tensor, index: Tensor, size: int) -> Tensor:
    """`[size]` sums of `values` `[S]` that share an `index` `[S]`; empty slots are 0."""
    return torch.zeros(size, dtype=values.dtype, device=values.device).index_add(0, index, values)


def _chunk_logps(head: Callable[[Tensor], Tensor], hidden: Tensor, target: Tensor) -> Tensor:
    """`[n]` log-probs of one chunk: logit of the target minus the log-sum-exp of the row."""
    logits = head(hidden)
    logits = logits.to(_at_least_fp32(logits.dtype))
    return logits.gather(-1, target[:, None]).squeeze(-1) - logits.logsumexp(-1)


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
