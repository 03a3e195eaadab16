"""DPOP (DPO-Positive): DPO that may not lower the chosen answer's likelihood (arXiv 2402.13228)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from losses._pairs import average_over_pairs, check_not_negative, check_reference, present_answers
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps


def dpop_loss(policy: PairLogps, reference: PairLogps | None, *, beta: float, penalty: float) -> LossOutput:
    """The DPOP objective (arXiv 2402.13228), averaged over the pairs of a prompt.

        a(y) = log π(y) − log π_ref(y)
        loss = mean_j −log σ( β·[ a(y_w) − a(y_l^j) − λ·max(0, −a(y_w)) ] )

    While the chosen answer is at least as likely as under the reference, this is DPO. Example: β = 0.1, λ = 50,
    a(y_w) = −0.1, a(y_l) = −4: margin 0.1·(3.9 − 5) = −0.11, loss 0.7497, where DPO's is 0.5170.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: the same answers under the reference model; required.
        beta: β, strength of the implicit KL constraint, 1/nat.
        penalty: λ ≥ 0, no unit: how many nats of margin a lost nat of the chosen answer costs.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, λ < 0, or without reference.
    """
    check_not_negative("dpop_loss", "penalty", penalty)
    reference = check_reference("dpop_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    lost = torch.relu(-chosen)
    pairs = -F.logsigmoid((chosen - penalty * lost)[:, None] - rejected)
    loss = average_over_pairs(pairs, present_answers(policy))
    return LossOutput(loss, chosen.detach(), rejected.detach())
