"""WPO: DPO whose pairs weigh by how likely the policy itself would give them (arXiv 2406.11827)."""

from __future__ import annotations

import torch

from losses._pairs import (
    average_over_pairs,
    check_label_smoothing,
    check_reference,
    collisions_of,
    present_answers,
    rejected_sums,
    smoothed_log_loss,
)
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps


def wpo_loss(
    policy: PairLogps,
    reference: PairLogps | None,
    *,
    beta: float,
    weight_cap: float,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """The WPO objective (arXiv 2406.11827, Eq. 2), averaged over the pairs of a prompt.

        z_j  = β·[log π(y_w) − log π_ref(y_w)] − β·[log π(y_l^j) − log π_ref(y_l^j)]
        w(y) = exp( 1/|y|·Σ_t [log π(y_t) − log Σ_v π(v)²] )
        loss = mean_j min( w(y_w)·w(y_l^j), c )·[ −(1 − ε)·log σ(z_j) − ε·log σ(−z_j) ]

    Weights have no gradient. Σ_v π(v)² is what a token drawn from the policy expects as its probability, so that an
    answer of its own weighs about 1, and one that it would hardly give next to nothing.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens, with their lengths and collisions.
        reference: the same answers under the reference model; required.
        beta: β, strength of the implicit KL constraint, 1/nat.
        weight_cap: c, the most that a pair weighs; inf does not cap.
        label_smoothing: ε in [0, 0.5), assumed chance that a preference label is wrong.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, c ≤ 0, ε outside [0, 0.5), without reference, or without collisions.
    """
    check_label_smoothing("wpo_loss", label_smoothing)
    if not weight_cap > 0:
        raise ValueError(f"wpo_loss: weight_cap must be above 0, got {weight_cap}")
    reference = check_reference("wpo_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    present = present_answers(policy)
    sums = torch.cat([policy.chosen[:, None], rejected_sums(policy, present)], dim=1).detach()
    lengths = torch.cat([policy.chosen_length[:, None], policy.rejected_length], dim=1)
    surprise = (sums - collisions_of("wpo_loss", policy)) / lengths.clamp(min=1)
    weights = (surprise[:, :1] + surprise[:, 1:]).exp().clamp(max=weight_cap)
    pairs = weights * smoothed_log_loss(chosen[:, None] - rejected, label_smoothing)
    return LossOutput(average_over_pairs(pairs, present), chosen.detach(), rejected.detach())
