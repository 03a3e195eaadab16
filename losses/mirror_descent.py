"""Mirror descent: answers of known reward, each moved away from the reference as its reward says (arXiv 2501.12599)."""

from __future__ import annotations

import torch

from losses._pairs import (
    average_over_pairs,
    check_reference,
    declared_column,
    present_answers,
    rejected_sums,
)
from losses.types import LossOutput, PairLogps


def mirror_descent_loss(policy: PairLogps, reference: PairLogps | None, *, tau: float) -> LossOutput:
    """Kimi k1.5's off-policy objective (arXiv 2501.12599) on the k answers of a prompt, the chosen one among them.

        loss = −1/k·Σ_j [ (r_j − r̄)·log π(y_j) − τ/2·(log π(y_j) − log π_ref(y_j))² ],      r̄ = 1/k·Σ_j r_j

    Its gradient is the paper's: that of `Σ_j (r_j − r̄ − τ·log(π/π_ref))² / 2τk`, with the mean reward in the place of
    τ·log Z. Rewards are the rows' own, `policy.columns["reward"]`, `[B, 1 + M]`; who is chosen and who rejected
    changes nothing. A prompt of one answer has r̄ = r, so that only the pull to the reference is left.

    Example: log π −10, −12, −9, log π_ref −10.5, −11, −9, rewards 1, 0, 1, τ = 0.1: −0.535.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens, and the column.
        reference: the same answers under the model that gave them; required.
        tau: τ, strength of the pull to the reference, reward per nat.

    Returns:
        loss `[B]`; rewards `τ·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: τ ≤ 0, without reference, or rows without `reward`.
    """
    if not tau > 0:
        raise ValueError(f"mirror_descent_loss: tau must be above 0, got {tau}")
    reference = check_reference("mirror_descent_loss", policy, reference)
    rewards = declared_column("mirror_descent_loss", policy, "reward")
    rejected = present_answers(policy)
    present = torch.cat([torch.ones_like(policy.chosen, dtype=torch.bool)[:, None], rejected], dim=1)
    own, other = (
        torch.cat([logps.chosen[:, None], rejected_sums(logps, rejected)], dim=1)
        for logps in (policy, reference)
    )
    advantage = rewards - average_over_pairs(rewards, present)[:, None]
    ratio = own - other
    loss = -average_over_pairs(advantage * own - tau / 2 * ratio**2, present)
    shown = tau * ratio.detach()
    return LossOutput(loss, shown[:, 0], shown[:, 1:])
