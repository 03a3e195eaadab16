"""SimPO: the mean log-prob a token as reward, with a target margin (arXiv 2405.14734)."""

from __future__ import annotations

import torch.nn.functional as F

from losses._pairs import average_over_pairs, chosen_nll, present_answers
from losses.rewards import mean_logp_reward
from losses.types import LossOutput, PairLogps


def simpo_loss(
    policy: PairLogps,
    reference: PairLogps | None = None,
    *,
    beta: float,
    gamma: float,
    nll_weight: float = 0.0,
) -> LossOutput:
    """The SimPO objective (arXiv 2405.14734, Eq. 6), averaged over the pairs of a prompt.

        loss = mean_j −log σ( β·mean(y_w) − β·mean(y_l^j) − γ ) − λ·mean(y_w)

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, with their lengths in tokens.
        reference: not read; every loss has the same call.
        beta: β, scale of the mean log-prob a token, 1/nat.
        gamma: γ, target margin between chosen and rejected reward, dimensionless (not γ/β).
        nll_weight: λ, weight of the chosen answer's mean negative log-prob; 0 in the paper.

    Returns:
        loss `[B]`; rewards `β·mean(y)`, detached, 0 for an absent answer.
    """
    chosen, rejected = mean_logp_reward(policy, beta=beta)
    pairs = -F.logsigmoid(chosen[:, None] - rejected - gamma)
    loss = average_over_pairs(pairs, present_answers(policy)) + nll_weight * chosen_nll(policy)
    return LossOutput(loss, chosen.detach(), rejected.detach())
