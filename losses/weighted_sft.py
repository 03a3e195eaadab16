"""SFT whose tokens have weights: a mean that is weighted as well, or a sum over the number of tokens."""

from __future__ import annotations

from losses._pairs import token_weighted
from losses.rewards import mean_logp_reward
from losses.types import LossOutput, PairLogps


def weighted_sft_loss(policy: PairLogps, reference: PairLogps | None = None) -> LossOutput:
    """TL-Training's loss on key tokens (arXiv 2412.15495), the weighted mean: `−Σ_t w_t·log p_t / Σ_t w_t`.

    A weight of 3 counts a token as three. All weights times 2 change nothing. Where tokens have no weights it is SFT's.

    Example: −log p of 2, 1 and 3 nats with the weights 1, 1 and 2: (2 + 1 + 6) / 4 = 2.25.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, with their lengths, and the weighted sums; M = 0 is usual.
        reference: not read; every loss has the same call.

    Returns:
        loss `[B]`, nats a token; rewards `log π(y|x) / |y|` without weights, detached, 0 for an absent answer.
    """
    weighted, weight = token_weighted(policy)
    chosen, rejected = mean_logp_reward(policy, beta=1.0)
    return LossOutput(-weighted[:, 0] / weight[:, 0], chosen.detach(), rejected.detach())


def full_ranking_loss(policy: PairLogps, reference: PairLogps | None = None) -> LossOutput:
    """Full ranking's importance-aware loss (arXiv 2412.14574), over the number of tokens: `−Σ_t w_t·log p_t / |y|`.

    So weights scale the step too: all of them times 2 double it. Where tokens have no weights it is SFT's.

    Example: −log p of 2, 1 and 3 nats with the weights 1, 1 and 2: (2 + 1 + 6) / 3 = 3.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, with their lengths, and the weighted sums; M = 0 is usual.
        reference: not read; every loss has the same call.

    Returns:
        loss `[B]`, nats a token; rewards `log π(y|x) / |y|` without weights, detached, 0 for an absent answer.
    """
    weighted, _ = token_weighted(policy)
    chosen, rejected = mean_logp_reward(policy, beta=1.0)
    return LossOutput(-weighted[:, 0] / policy.chosen_length, chosen.detach(), rejected.detach())
