"""IPO: a squared loss that stops at a finite margin (arXiv 2310.12036)."""

from __future__ import annotations

from losses._pairs import average_over_pairs, check_positive, check_reference, present_answers
from losses.rewards import log_ratio_reward, mean_log_ratio_reward
from losses.types import LossOutput, PairLogps


def ipo_loss(policy: PairLogps, reference: PairLogps | None, *, beta: float) -> LossOutput:
    """The IPO objective (arXiv 2310.12036, Eq. 17), averaged over the pairs of a prompt.

        h_j  = [log π(y_w) − log π_ref(y_w)] / |y_w| − [log π(y_l^j) − log π_ref(y_l^j)] / |y_l^j|
        loss = mean_j ( h_j − 1/(2β) )²

    Log-ratios are means over tokens, as TRL has them after asking the authors; the paper's τ is β.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, with their lengths in tokens.
        reference: the same answers under the reference model; required.
        beta: β, regularisation: the loss asks for a margin of 1/(2β) nats a token.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]` (sums), detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, or without reference.
    """
    check_positive("ipo_loss", beta)
    reference = check_reference("ipo_loss", policy, reference)
    chosen, rejected = mean_log_ratio_reward(policy, reference, beta=1.0)
    pairs = (chosen[:, None] - rejected - 1 / (2 * beta)) ** 2
    loss = average_over_pairs(pairs, present_answers(policy))
    chosen_reward, rejected_reward = log_ratio_reward(policy, reference, beta=beta)
    return LossOutput(loss, chosen_reward.detach(), rejected_reward.detach())
