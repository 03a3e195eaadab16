"""AlphaPO: SimPO with another shape of reward than the logarithm (arXiv 2501.03884)."""

from __future__ import annotations

import torch.nn.functional as F

from losses._pairs import average_over_pairs, check_positive, finite_expm1, present_answers
from losses.rewards import mean_logp_reward
from losses.types import LossOutput, PairLogps


def alphapo_loss(
    policy: PairLogps, reference: PairLogps | None = None, *, beta: float, gamma: float, alpha: float
) -> LossOutput:
    """The AlphaPO objective (arXiv 2501.03884), averaged over the pairs of a prompt.

        p(y) = exp( log π(y|x) / |y| )
        r(y) = β·( 1 − p(y)^(−α) ) / α
        loss = mean_j −log σ( r(y_w) − r(y_l^j) − γ )

    α → 0 is SimPO, whose reward is β·log p. Above 0 an unlikely answer costs more than its logarithm says, so that
    the gradient raises unlikely chosen answers; below 0 less. Example: p = e⁻² and e⁻³, β = 2, γ = 0, α = ½:
    4·(e^1.5 − e) = 7.05, loss 0.0009; SimPO's margin is 2.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, with their lengths in tokens.
        reference: not read; every loss has the same call.
        beta: β, scale of the reward, dimensionless (1/nat as α → 0).
        gamma: γ, target margin between chosen and rejected reward, dimensionless.
        alpha: α, no unit, not 0: take `simpo_loss` there.

    Returns:
        loss `[B]`; rewards r(y), detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, or α = 0.
    """
    check_positive("alphapo_loss", beta)
    if alpha == 0:
        raise ValueError("alphapo_loss: alpha must not be 0, where the loss is simpo_loss")
    chosen, rejected = mean_logp_reward(policy, beta=1.0)
    chosen = -beta * finite_expm1(-alpha * chosen) / alpha
    rejected = -beta * finite_expm1(-alpha * rejected) / alpha
    pairs = -F.logsigmoid(chosen[:, None] - rejected - gamma)
    loss = average_over_pairs(pairs, present_answers(policy))
    return LossOutput(loss, chosen.detach(), rejected.detach())
