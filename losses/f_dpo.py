"""f-DPO: DPO under another divergence than the reverse KL (arXiv 2309.16240)."""

from __future__ import annotations

import torch.nn.functional as F

from losses._pairs import average_over_pairs, check_reference, present_answers
from losses.rewards import Divergence, f_divergence_reward
from losses.types import LossOutput, PairLogps


def f_dpo_loss(
    policy: PairLogps, reference: PairLogps | None, *, beta: float, divergence: Divergence
) -> LossOutput:
    """The f-DPO objective (arXiv 2309.16240), averaged over the pairs of a prompt.

        r(y) = β·f'( π(y) / π_ref(y) )
        loss = mean_j −log σ( r(y_w) − r(y_l^j) )

    The ratio is that of whole answers: over hundreds of tokens it leaves the range in which divergences other than the
    reverse KL tell answers apart, and a small β keeps it there longer. Example: β = 0.1, log-ratios 2 and −2 nats,
    Jensen-Shannon: 0.1·(0.5662 + 1.4338) = 0.2, loss 0.5981.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: the same answers under the reference model; required.
        beta: β, strength of the constraint, dimensionless (1/nat for the reverse KL).
        divergence: f' of a log-ratio, one of `losses.divergences` or your own.

    Returns:
        loss `[B]`; rewards r(y), detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, or without reference.
    """
    reference = check_reference("f_dpo_loss", policy, reference)
    chosen, rejected = f_divergence_reward(policy, reference, beta=beta, divergence=divergence)
    loss = average_over_pairs(-F.logsigmoid(chosen[:, None] - rejected), present_answers(policy))
    return LossOutput(loss, chosen.detach(), rejected.detach())
