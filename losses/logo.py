"""LOGO: reference-free, length-normalised, several rejected answers (arXiv 2410.18533)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from losses._pairs import average_over_pairs, chosen_nll, present_answers
from losses.rewards import mean_logp_reward
from losses.types import LossOutput, PairLogps


def logo_loss(
    policy: PairLogps, reference: PairLogps | None = None, *, beta: float, gamma: float, sft_weight: float
) -> LossOutput:
    """The LOGO objective with its SFT term (arXiv 2410.18533).

        preference = −log σ( β·mean(y_w) − (β/M)·Σ_j mean(y_l^j) − γ )
        loss       = preference − λ·mean(y_w),      mean(y) = log π(y|x) / |y|

    The average over the M rejected answers stands inside the sigmoid: they are judged together. M = 1 is
    SimPO; a prompt without rejected answers keeps the SFT term alone.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, with their lengths in tokens.
        reference: not read; every loss has the same call.
        beta: β, scale of the mean log-prob a token, 1/nat.
        gamma: γ, target margin between chosen and rejected reward, dimensionless.
        sft_weight: λ, weight of the chosen answer's mean negative log-prob.

    Returns:
        loss `[B]`; rewards `β·mean(y)`, detached, 0 for an absent answer.
    """
    chosen, rejected = mean_logp_reward(policy, beta=beta)
    present = present_answers(policy)
    margin = chosen - average_over_pairs(rejected, present) - gamma
    preference = torch.where(present.any(dim=1), -F.logsigmoid(margin), 0.0)
    return LossOutput(preference + sft_weight * chosen_nll(policy), chosen.detach(), rejected.detach())
