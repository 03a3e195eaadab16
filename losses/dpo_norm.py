"""Length-normalised DPO: log-ratios a token in place of sums, so that long answers do not win by their length."""

from __future__ import annotations

import torch.nn.functional as F

from losses._pairs import average_over_pairs, check_reference, present_answers
from losses.rewards import mean_log_ratio_reward
from losses.types import LossOutput, PairLogps


def dpo_norm_loss(policy: PairLogps, reference: PairLogps | None, *, beta: float) -> LossOutput:
    """The length-normalised DPO of Tülu 3 (arXiv 2411.15124), averaged over the pairs of a prompt.

        r(y) = β·[log π(y) − log π_ref(y)] / |y|
        loss = mean_j −log σ( r(y_w) − r(y_l^j) )

    A log-ratio a token is far smaller than a sum, so that β is of the order of 5, not of 0.1. Example: β = 5,
    10 tokens each, log-ratios +2 and −2 nats: margin 5·0.4 = 2, loss 0.1269.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, with their lengths in tokens.
        reference: the same answers under the reference model; required.
        beta: β, scale of the mean log-ratio a token, 1/nat.

    Returns:
        loss `[B]`; rewards r(y), detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, or without reference.
    """
    reference = check_reference("dpo_norm_loss", policy, reference)
    chosen, rejected = mean_log_ratio_reward(policy, reference, beta=beta)
    loss = average_over_pairs(-F.logsigmoid(chosen[:, None] - rejected), present_answers(policy))
    return LossOutput(loss, chosen.detach(), rejected.detach())
