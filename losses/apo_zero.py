"""APO-zero: the chosen answer made likelier, each rejected one less likely, each by itself (arXiv 2408.06266)."""

from __future__ import annotations

import torch

from losses._pairs import average_over_pairs, check_reference, present_answers
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps


def apo_zero_loss(policy: PairLogps, reference: PairLogps | None, *, beta: float) -> LossOutput:
    """The APO-zero objective (arXiv 2408.06266, Eq. 7), averaged over the pairs of a prompt.

        loss = mean_j [ 1 − σ(r(y_w)) + σ(r(y_l^j)) ],   r(y) = β·[log π(y) − log π_ref(y)]

    For chosen answers that are better than what the model writes by itself. The 1 is TRL's: it makes the
    lowest value 0 and has no gradient. Example: r = 0.2 and −0.2: 1 − 0.5498 + 0.4502 = 0.9003.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: the same answers under the reference model; required.
        beta: β, scale of the log-ratio, 1/nat.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, or without reference.
    """
    reference = check_reference("apo_zero_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    pairs = torch.sigmoid(-chosen)[:, None] + torch.sigmoid(rejected)
    loss = average_over_pairs(pairs, present_answers(policy))
    return LossOutput(loss, chosen.detach(), rejected.detach())
