"""Supervised fine-tuning on the chosen answers: the papers' baseline, and LongWriter's first stage."""

from __future__ import annotations

from losses._pairs import chosen_nll
from losses.rewards import mean_logp_reward
from losses.types import LossOutput, PairLogps


def sft_loss(policy: PairLogps, reference: PairLogps | None = None) -> LossOutput:
    """Mean negative log-prob a token of the chosen answer: `−log π(y_w|x) / |y_w|`.

    Rejected answers, where rows have them, take no part; their mean log-prob is returned as reward, so that
    an SFT run shows the same held-out accuracy and margin as a preference run.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, with their lengths in tokens; M = 0 is usual.
        reference: not read; every loss has the same call.

    Returns:
        loss `[B]`, nats a token; rewards `log π(y|x) / |y|`, detached, 0 for an absent answer.
    """
    chosen, rejected = mean_logp_reward(policy, beta=1.0)
    return LossOutput(chosen_nll(policy), chosen.detach(), rejected.detach())
