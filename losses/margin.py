"""A target margin that each row sets for itself, under DPO's reward or SimPO's (arXiv 2402.10571)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from losses._pairs import average_over_pairs, declared_column, present_answers, smoothed_log_loss
from losses.types import LossOutput, PairLogps

Reward = Callable[[PairLogps, PairLogps | None], tuple[Tensor, Tensor]]


def row_margin_loss(
    policy: PairLogps, reference: PairLogps | None = None, *, reward: Reward, scale: float
) -> LossOutput:
    """The logistic loss with the row's own margin, averaged over the pairs of a prompt.

        z_j  = r(y_w) − r(y_l^j) − s·Δ
        loss = mean_j −log σ(z_j)

    With DPO's reward it is ODPO (arXiv 2402.10571), with SimPO's SimPO with a γ for each row. Δ is the rows'
    own, `policy.columns["margin"]`, `[B]`: how much better the chosen answer is, by a judge or a reward model; below 0
    the rejected one is.

    Example: rewards 0.2 and −0.2, Δ = 2, s = 0.1: z = 0.2 and a loss of 0.598.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens, and the column.
        reference: of the same answers, where the reward reads one.
        reward: r, with its settings filled in (`losses.rewards`).
        scale: s, reward for each unit of Δ.

    Returns:
        loss `[B]`; rewards r, detached, 0 for an absent answer.

    Raises:
        ValueError: rows without `margin`, or what the reward raises.
    """
    margin = scale * declared_column("row_margin_loss", policy, "margin")
    chosen, rejected = reward(policy, reference)
    pairs = smoothed_log_loss((chosen - margin)[:, None] - rejected, 0.0)
    loss = average_over_pairs(pairs, present_answers(policy))
    return LossOutput(loss, chosen.detach(), rejected.detach())
