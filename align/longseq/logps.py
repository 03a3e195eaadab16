"""Log-probs of scored tokens only, in fp32, a slice of vocabulary logits at a time; their sums in fp64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# `[n, V]` logits of a slice and its `[n]` targets → `[n]` or `[n, 2]`: each target's log-prob, and what is behind it.
Scores = Callable[[Tensor, Tensor], Tensor]


def token_logps(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    target: Tensor,
    *,
    slices: int,
    scores: Scores | None = None,
) -> Tensor:
    """Log-probability of each target token, in nats.

    Tokens are cut into slices, and the `[S / slices, V]` logits of one slice exist at a time, in the backward pass
    too (they are recomputed). 4,096 tokens in 4 slices over a vocabulary of 128,000: 0.5 GB at a time, not 2.1.

    Args:
        head: maps `[n, H]` hidden states to `[n, V]` logits: the model's output embedding.
        hidden: `[S, H]` the hidden states that predict the targets; S = 0 still calls the head, so that this
            process takes part in the backward pass.
        target: `[S]` token ids.
        slices: how often the head is called; a slice's memory is `⌈S / slices⌉ · V · 4` bytes, twice in the
            forward pass (the exponentials beside the logits), once in the backward pass.
        scores: what becomes of a slice's logits `[n, V]` and targets; None is `target_logps`.

    Returns:
        `[S]`, fp32 (fp64 for an fp64 model); what `scores` gives, where it is another.
    """
    targets = target.tensor_split(slices)
    # `split`, whose backward pass joins the slices once; that of `tensor_split` adds up a row for each.
    parts = hidden.split([len(part) for part in targets])
    # ZeRO-3 may have given up a frozen weight when the recomputed head ends, and fetches it again before the head's
    # backward pass: by its shape in between torch would take it for another tensor.
    logps = [
        checkpoint(
            _slice_scores,
            head,
            states,
            ids,
            scores or target_logps,
            use_reentrant=False,
            determinism_check="none",
        )
        for states, ids in zip(parts, targets, strict=True)
    ]
    return torch.cat(logps)


def sum_dtype(device: torch.device) -> torch.dtype:
    """fp64, in which log-probs are summed; fp32 on a device that has no fp64 (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def sum_by_index(values: Tensor, index: Tensor, size: int) -> Tensor:
    """`[size]` sums of the `values` `[S]` that share an `index` `[S]`, which ascends; empty slots are 0.

    Values `1, 2, 4` with the indices `0, 0, 2` and size 3 give `3, 0, 4`.

    Log-probs are summed in fp64: a sum of 131,072 of them in fp32 is off by half a nat, and the difference of two such
    sums, a margin, by as much. Each sum is taken by itself and not by atomic additions, so that equal values give equal
    sums on every device, to the last bit.

    Returns:
        `sum_dtype` for floating-point values; whole numbers as they are.
    """
    if not values.is_floating_point():
        return torch.zeros(size, dtype=values.dtype, device=values.device).index_add(0, index, values)
    bounds = torch.searchsorted(index, torch.arange(size + 1, device=index.device))
    return torch.segment_reduce(values.to(sum_dtype(values.device)), "sum", offsets=bounds, unsafe=True)


def target_logps(logits: Tensor, target: Tensor) -> Tensor:
    """`[n]` log-probs of the targets from `[n, V]` logits."""
    return _TargetLogps.apply(logits, target)


def target_logps_and_collisions(logits: Tensor, target: Tensor) -> Tensor:
    """`[n, 2]`: the log-prob of each target, and log Σ_v p_v² over the vocabulary, without a gradient.

    That is the log of the chance that two draws agree: 0 where the model is sure, −log V where it knows nothing.
    Of the probabilities 0.5, 0.25, 0.25 it is log 0.375. It takes no more memory than the log-probs.
    """
    with torch.no_grad():
        collisions = 2 * torch.linalg.vector_norm(logits.softmax(-1), dim=-1).log()
    return torch.stack([target_logps(logits, target), collisions], dim=1)


def _slice_scores(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    target: Tensor,
    scores: Scores,
) -> Tensor:
    """`[n, …]` scores of one slice."""
    logits = head(hidden)
    return scores(logits.to(_at_least_fp32(logits.dtype)), target)


class _TargetLogps(Function):
    """The logit of the target minus the log-sum-exp of its row.

    As autograd would have it, but for memory: the backward pass turns the logits into their gradient where they
    are, `g · (onehot(target) − softmax(logits))`, while autograd would make three more tensors of that size.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        normaliser = logits.logsumexp(-1)
        ctx.save_for_backward(logits, target, normaliser)
        return logits.gather(-1, target[:, None]).squeeze(-1) - normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        logits, target, normaliser = ctx.saved_tensors
        # Nothing else reads these logits: the checkpoint around the slice makes new ones for every backward pass.
        logits.sub_(normaliser[:, None]).exp_().mul_(-gradient[:, None])
        return logits.scatter_add_(-1, target[:, None], gradient[:, None]), None


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
