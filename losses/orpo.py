"""ORPO: SFT with an odds-ratio penalty, without a reference (arXiv 2403.07691)."""

from __future__ import annotations

import torch.nn.functional as F

from losses._pairs import average_over_pairs, chosen_nll, present_answers
from losses.rewards import log_odds_reward, mean_logp_reward
from losses.types import LossOutput, PairLogps


def orpo_loss(policy: PairLogps, reference: PairLogps | None = None, *, beta: float) -> LossOutput:
    """The ORPO objective (arXiv 2403.07691, Eq. 6 and 7), averaged over the pairs of a prompt.

        odds(y) = p / (1 − p),   p = exp( log π(y|x) / |y| )
        loss    = −mean(y_w) + β·mean_j −log σ( log odds(y_w) − log odds(y_l^j) )

    The NLL covers the chosen answer, as in the paper; TRL's trainer extends it over the prompt.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, with their lengths in tokens.
        reference: not read; every loss has the same call.
        beta: weight of the odds-ratio term, the paper's λ.

    Returns:
        loss `[B]`; rewards `β·mean(y)` as TRL logs them, detached, 0 for an absent answer.
    """
    chosen_odds, rejected_odds = log_odds_reward(policy, beta=1.0)
    pairs = -F.logsigmoid(chosen_odds[:, None] - rejected_odds)
    loss = chosen_nll(policy) + beta * average_over_pairs(pairs, present_answers(policy))
    chosen, rejected = mean_logp_reward(policy, beta=beta)
    return LossOutput(loss, chosen.detach(), rejected.detach())
