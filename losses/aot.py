"""AOT: the distribution of a step's margins against another one, quantile by quantile (arXiv 2406.05882)."""

from __future__ import annotations

import torch
from torch import Tensor

from losses._pairs import (
    average_over_pairs,
    check_label_smoothing,
    check_reference,
    present_answers,
    rejected_sums,
    smoothed_log_loss,
)
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps


def aot_loss(
    policy: PairLogps, reference: PairLogps | None, *, beta: float, label_smoothing: float = 0.0
) -> LossOutput:
    """Paired AOT (arXiv 2406.05882): the margins of the policy over those of the reference, both sorted.

        u_(k) = the k-th smallest log π(y_w) − log π(y_l) of the step's pairs; v_(k) the same under π_ref
        loss  = mean_k −(1 − ε)·log σ(β·(u_(k) − v_(k))) − ε·log σ(−β·(u_(k) − v_(k)))

    A pair has the loss of the rank of its u, averaged over the pairs of a prompt. Alone in its step it has DPO's loss.

    Args:
        policy: of all prompts of a step (`needs.batch: step`): log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: the same answers under the reference model; required.
        beta: β, strength of the implicit KL constraint, 1/nat.
        label_smoothing: ε in [0, 0.5), assumed chance that a preference label is wrong.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: without reference, β ≤ 0, or ε outside [0, 0.5).
    """
    check_label_smoothing("aot_loss", label_smoothing)
    reference = check_reference("aot_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    present = present_answers(policy)
    margins = beta * (policy.chosen[:, None] - rejected_sums(policy, present))
    of_reference = beta * (reference.chosen[:, None] - rejected_sums(reference, present))
    pairs = _by_quantile(margins, of_reference, present, label_smoothing=label_smoothing)
    return LossOutput(average_over_pairs(pairs, present), chosen.detach(), rejected.detach())


def aot_unpaired_loss(
    policy: PairLogps, reference: PairLogps | None, *, beta: float, label_smoothing: float = 0.0
) -> LossOutput:
    """Unpaired AOT (arXiv 2406.05882): the rewards of chosen answers over those of rejected ones, both sorted.

        u_(k) = the k-th smallest log π(y_w) − log π_ref(y_w) of the step; v_(k) the same of its y_l
        loss  = as `aot_loss`

    Which rejected answer a chosen one came with does not count; a chosen one beside several counts as often.

    Args:
        policy: of all prompts of a step (`needs.batch: step`): log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: the same answers under the reference model; required.
        beta: β, strength of the implicit KL constraint, 1/nat.
        label_smoothing: ε in [0, 0.5), assumed chance that a preference label is wrong.

    Returns:
        loss `[B]`, that of the ranks of a prompt's chosen answer; rewards as `aot_loss`.

    Raises:
        ValueError: without reference, β ≤ 0, or ε outside [0, 0.5).
    """
    check_label_smoothing("aot_unpaired_loss", label_smoothing)
    reference = check_reference("aot_unpaired_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    present = present_answers(policy)
    of_chosen = chosen[:, None].expand_as(rejected)
    pairs = _by_quantile(of_chosen, rejected, present, label_smoothing=label_smoothing)
    return LossOutput(average_over_pairs(pairs, present), chosen.detach(), rejected.detach())


def _by_quantile(upper: Tensor, lower: Tensor, present: Tensor, *, label_smoothing: float) -> Tensor:
    """`[B, M]` logistic losses of `upper_(k) − lower_(k)`, each at the place of its `upper`.

    Uppers 5, 1, 3 over lowers 0, 2, 1 are compared as 5 − 2, 1 − 0, 3 − 1. What is absent is sorted behind all others.
    """
    ranked, order = _sorted(upper, present)
    losses = smoothed_log_loss(ranked - _sorted(lower, present)[0], label_smoothing)
    return torch.zeros_like(losses).scatter(0, order, losses).view_as(upper)


def _sorted(values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """`[B · M]` values in ascending order, 0 for absent ones at the end, and where each stood."""
    safe = torch.where(present, values, 0.0).flatten()
    order = torch.where(present.flatten(), safe.detach(), torch.inf).argsort(stable=True)
    return safe[order], order
