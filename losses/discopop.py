"""DiscoPOP: a loss that a language model found, logistic on wrong pairs and exponential on right ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from losses._pairs import average_over_pairs, check_reference, present_answers
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps


def discopop_loss(policy: PairLogps, reference: PairLogps | None, *, beta: float, tau: float) -> LossOutput:
    """The DiscoPOP objective, LRML (arXiv 2406.08414, Eq. 5), averaged over the pairs of a prompt.

        z_j  = β·[log π(y_w) − log π_ref(y_w)] − β·[log π(y_l^j) − log π_ref(y_l^j)]
        s_j  = σ(z_j / τ)
        loss = mean_j [ −(1 − s_j)·log σ(z_j) + s_j·exp(−z_j) ]

    It is not convex: with τ = 0.05 it has a minimum at z = −0.119 and a maximum at 0.072, so that between them, and
    at the start of training (z = 0), the gradient lowers the margin. Example: z = 0.4: s = 0.9997, loss 0.6703.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: the same answers under the reference model; required.
        beta: β, strength of the implicit KL constraint, 1/nat.
        tau: τ in (0, 1), no unit: over which width of z the two losses change places.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, τ outside (0, 1), where a wrong pair's loss has no bound, or without reference.
    """
    if not 0.0 < tau < 1.0:
        raise ValueError(f"discopop_loss: tau must lie in (0, 1), got {tau}")
    reference = check_reference("discopop_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    margin = chosen[:, None] - rejected
    logistic = -F.logsigmoid(margin) * torch.sigmoid(-margin / tau)
    # s·exp(−z) as one exponential: of a wrong pair s is tiny and exp(−z) huge, and their product is neither.
    exponential = torch.exp(F.logsigmoid(margin / tau) - margin)
    loss = average_over_pairs(logistic + exponential, present_answers(policy))
    return LossOutput(loss, chosen.detach(), rejected.detach())
