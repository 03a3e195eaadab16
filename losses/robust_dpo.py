"""Robust DPO: an unbiased estimate of DPO's loss under randomly flipped labels (arXiv 2403.00409)."""

from __future__ import annotations

import torch.nn.functional as F

from losses._pairs import average_over_pairs, check_label_smoothing, check_reference, present_answers
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps


def robust_dpo_loss(
    policy: PairLogps, reference: PairLogps | None, *, beta: float, label_smoothing: float
) -> LossOutput:
    """The rDPO objective (arXiv 2403.00409), averaged over the pairs of a prompt.

        loss = mean_j [ −(1 − ε)·log σ(z_j) + ε·log σ(−z_j) ] / (1 − 2ε),   z_j as in `dpo_loss`

    Its mean over labels flipped with chance ε is DPO's loss on the true labels; unlike DPO's it has no
    lower bound of 0.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: the same answers under the reference model; required.
        beta: β, strength of the implicit KL constraint, 1/nat.
        label_smoothing: ε in [0, 0.5), chance that a preference label is flipped.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: without reference, or with ε outside [0, 0.5).
    """
    check_label_smoothing("robust_dpo_loss", label_smoothing)
    reference = check_reference("robust_dpo_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    margin = chosen[:, None] - rejected
    pairs = -(1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)
    loss = average_over_pairs(pairs / (1 - 2 * label_smoothing), present_answers(policy))
    return LossOutput(loss, chosen.detach(), rejected.detach())
