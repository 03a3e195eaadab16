"""Implicit rewards: what a loss takes the policy's log-probs to say about an answer's worth.

Each takes log-probs and returns `(chosen [B], rejected [B, M])` with gradients; an absent rejected answer
has reward 0 and no gradient. They are public because a method may be built on the reward of another
(`solopo_loss`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from losses._pairs import check_positive, check_reference, present_answers, rejected_sums
from losses.types import PairLogps

Divergence = Callable[[Tensor], Tensor]


def log_ratio_reward(policy: PairLogps, reference: PairLogps | None, *, beta: float) -> tuple[Tensor, Tensor]:
    """DPO's reward `β·[log π(y|x) − log π_ref(y|x)]`, sums over tokens (arXiv 2305.18290, Eq. 5).

    Args:
        policy: log-probs `[B]` and `[B, M]`.
        reference: of the same shapes; required.
        beta: β, strength of the implicit KL constraint, 1/nat.

    Raises:
        ValueError: β ≤ 0, without reference, or where its shape is not the policy's.
    """
    check_positive("log_ratio_reward", beta)
    reference = check_reference("log_ratio_reward", policy, reference)
    present = present_answers(policy)
    rejected = rejected_sums(policy, present) - rejected_sums(reference, present)
    return beta * (policy.chosen - reference.chosen), beta * rejected


def mean_log_ratio_reward(
    policy: PairLogps, reference: PairLogps | None, *, beta: float
) -> tuple[Tensor, Tensor]:
    """Length-normalised DPO's and IPO's reward `β·[log π(y|x) − log π_ref(y|x)] / |y|`.

    Args:
        policy: log-probs `[B]` and `[B, M]` with their lengths in tokens.
        reference: of the same shapes; required.
        beta: β, scale of the mean log-ratio a token, 1/nat.

    Raises:
        ValueError: as `log_ratio_reward`.
    """
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    return chosen / policy.chosen_length, rejected / policy.rejected_length.clamp(min=1)


def f_divergence_reward(
    policy: PairLogps, reference: PairLogps | None, *, beta: float, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    """f-DPO's reward `β·f'(π(y|x) / π_ref(y|x))` (arXiv 2309.16240).

    Args:
        policy: log-probs `[B]` and `[B, M]`.
        reference: of the same shapes; required.
        beta: β, strength of the constraint.
        divergence: f' of a log-ratio in nats, elementwise: one of `losses.divergences`.

    Raises:
        ValueError: as `log_ratio_reward`.
    """
    check_positive("f_divergence_reward", beta)
    chosen, rejected = log_ratio_reward(policy, reference, beta=1.0)
    values = torch.where(present_answers(policy), divergence(rejected), 0.0)
    return beta * divergence(chosen), beta * values


def mean_logp_reward(
    policy: PairLogps, reference: PairLogps | None = None, *, beta: float
) -> tuple[Tensor, Tensor]:
    """SimPO's and LOGO's reward `β·log π(y|x) / |y|` (arXiv 2405.14734, Eq. 4).

    Args:
        policy: log-probs `[B]` and `[B, M]` with their lengths in tokens.
        reference: not read; every reward has the same call.
        beta: β, scale of the mean log-prob a token, 1/nat.

    Raises:
        ValueError: β ≤ 0.
    """
    check_positive("mean_logp_reward", beta)
    rejected = rejected_sums(policy, present_answers(policy))
    return (
        beta * policy.chosen / policy.chosen_length,
        beta * rejected / policy.rejected_length.clamp(min=1),
    )


def log_odds_reward(
    policy: PairLogps, reference: PairLogps | None = None, *, beta: float
) -> tuple[Tensor, Tensor]:
    """ORPO's log-odds `β·log[p / (1 − p)]`, p = exp(mean log-prob a token) (arXiv 2403.07691, Eq. 4).

    Args:
        policy: log-probs `[B]` and `[B, M]` with their lengths in tokens.
        reference: not read; every reward has the same call.
        beta: β, scale, dimensionless; 1 in the paper's odds ratio.

    Raises:
        ValueError: β ≤ 0.
    """
    check_positive("log_odds_reward", beta)
    chosen, rejected = mean_logp_reward(policy, beta=1.0)
    log_odds = torch.where(present_answers(policy), _log_odds(rejected), 0.0)
    return beta * _log_odds(chosen), beta * log_odds


def _log_odds(logp: Tensor) -> Tensor:
    """`log[p / (1 − p)]` from `log p ≤ 0`, exact near both ends.

    A probability that rounds to 1 has infinite odds; it counts as the largest one below 1.
    """
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    # log(1 − p): expm1 is exact for p near 1, log1p for p near 0. Each branch gets a value it can
    # differentiate even where the other is taken, or the unused one's infinite slope makes NaN.
    near_one = logp > -math.log(2.0)
    large = torch.log(-torch.expm1(torch.where(near_one, logp, -1.0)))
    small = torch.log1p(-torch.exp(torch.where(near_one, -1.0, logp)))
    return logp - torch.where(near_one, large, small)
