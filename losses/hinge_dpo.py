"""DPO with a hinge in place of the logistic loss: nothing more is asked of a pair told apart (arXiv 2309.06657)."""

from __future__ import annotations

import torch

from losses._pairs import average_over_pairs, check_reference, present_answers
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps


def hinge_dpo_loss(policy: PairLogps, reference: PairLogps | None, *, beta: float) -> LossOutput:
    """RSO's hinge-norm loss (arXiv 2309.06657), averaged over the pairs of a prompt.

        z_j  = β·[log π(y_w) − log π_ref(y_w)] − β·[log π(y_l^j) − log π_ref(y_l^j)]
        loss = mean_j max(0, 1 − z_j)

    The support vector machine to DPO's logistic regression, and SLiC measured against a reference: TRL's `hinge`.
    A pair whose margin is 1/β nats or more has no gradient. Example: z = 0.4: loss 0.6.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: the same answers under the reference model; required.
        beta: β, the paper's γ, 1/nat.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, or without reference.
    """
    reference = check_reference("hinge_dpo_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    loss = average_over_pairs(torch.relu(1 - chosen[:, None] + rejected), present_answers(policy))
    return LossOutput(loss, chosen.detach(), rejected.detach())
