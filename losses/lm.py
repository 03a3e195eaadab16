"""Language modelling: the mean negative log-prob of every token that the method declares scored."""

from __future__ import annotations

from losses.rewards import mean_logp_reward
from losses.types import LossOutput, PairLogps


def lm_loss(policy: PairLogps, reference: PairLogps | None = None) -> LossOutput:
    """`−(1/n) Σ log π(t_i | t_<i)` over the n tokens of `needs.nll_scope`: prompt and answer, or the answer alone.

    Of plain text (a document) every token but the first is scored, whatever the scope. A row of 12 prompt tokens with
    30 nats together and 4 answer tokens with 6 has the loss 36 / 16 = 2.25, and 1.5 on its answer alone. With
    `needs.weighting: sequence` the loss of a step is the mean over all scored tokens of its rows: ProLong's next-token
    loss (arXiv 2410.02660), and Llama 2 Long's on prompts and answers (arXiv 2309.16039, table 9).

    Args:
        policy: `nll` `[B]` is the loss, nats a token; the rest shows as rewards.
        reference: not read; every loss has the same call.

    Returns:
        loss `[B]`, nats a token; rewards `log π(y|x) / |y|`, detached, 0 for an absent answer.

    Raises:
        ValueError: the method declares no `nll_scope`.
    """
    if policy.nll is None:
        raise ValueError("lm_loss averages over needs.nll_scope, which is none: set sequence or chosen")
    chosen, rejected = mean_logp_reward(policy, beta=1.0)
    return LossOutput(policy.nll, chosen.detach(), rejected.detach())
