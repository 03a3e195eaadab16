"""LD-DPO: DPO in which what is longer than the other answer counts less (arXiv 2409.06411)."""

from __future__ import annotations

import torch
from torch import Tensor

from losses._pairs import (
    average_over_pairs,
    check_positive,
    check_reference,
    fronts_of_pairs,
    present_answers,
    rejected_sums,
    smoothed_log_loss,
)
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps


def ld_dpo_loss(policy: PairLogps, reference: PairLogps | None, *, beta: float, alpha: float) -> LossOutput:
    """The length-desensitised DPO objective (arXiv 2409.06411), averaged over the pairs of a prompt.

        log π̂(y) = log π(y_{≤n}|x) + α·log π(y_{>n}|x, y_{≤n}),      n = min(|y_w|, |y_l|)
        z_j  = β·[log π̂(y_w) − log π̂_ref(y_w)] − β·[log π̂(y_l^j) − log π̂_ref(y_l^j)]
        loss = mean_j −log σ(z_j)

    Each pair has an n of its own, so that with several rejected answers the chosen one is split at several places.
    α = 1 is DPO; with α = 0 nothing counts behind the shorter answer's length.

    Example: a chosen answer of −20 nats, of which −12 stand in the 5 tokens that the rejected one has: −16 at α = 0.5.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens, and the fronts of each pair.
        reference: the same answers under the reference model, with the same fronts; required.
        beta: β, strength of the implicit KL constraint, 1/nat.
        alpha: α in [0, 1], how much counts of what only the longer answer has.

    Returns:
        loss `[B]`; rewards `β·[log π̂(y) − log π̂_ref(y)]`, the chosen answer's as a mean over its pairs (without any
        DPO's), detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, α outside [0, 1], without reference, or without fronts.
    """
    check_positive("ld_dpo_loss", beta)
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"ld_dpo_loss: alpha must lie in [0, 1], got {alpha}")
    reference = check_reference("ld_dpo_loss", policy, reference)
    present = present_answers(policy)
    own, other = (_desensitised(logps, present, alpha) for logps in (policy, reference))
    chosen, rejected = beta * (own[0] - other[0]), beta * (own[1] - other[1])
    loss = average_over_pairs(smoothed_log_loss(chosen - rejected, 0.0), present)
    plain, _ = log_ratio_reward(policy, reference, beta=beta)
    shown = torch.where(present.any(dim=1), average_over_pairs(chosen, present), plain)
    return LossOutput(loss, shown.detach(), rejected.detach())


def _desensitised(logps: PairLogps, present: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """`[B, M]` log π̂ of the chosen answer and of the rejected one, for each pair; 0 where it is absent."""
    fronts = fronts_of_pairs("ld_dpo_loss", logps)
    sums = (logps.chosen[:, None].expand_as(present), rejected_sums(logps, present))
    chosen, rejected = (
        torch.where(present, front + alpha * (whole - front), 0.0)
        for front, whole in zip(fronts, sums, strict=True)
    )
    return chosen, rejected
