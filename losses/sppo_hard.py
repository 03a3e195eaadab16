"""SPPO with hard labels: each answer's log-ratio is driven to a fixed value (arXiv 2405.00675)."""

from __future__ import annotations

from losses._pairs import average_over_pairs, check_reference, present_answers
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps


def sppo_hard_loss(policy: PairLogps, reference: PairLogps | None, *, beta: float) -> LossOutput:
    """The SPPO objective (arXiv 2405.00675, Eq. 4.7) for a sure winner, averaged over the pairs of a prompt.

        a(y) = log π(y) − log π_ref(y)
        loss = mean_j [ ( a(y_w) − 1/(2β) )² + ( a(y_l^j) + 1/(2β) )² ]

    The paper has η·(P − ½) for the goals, with η = 1/β and P the chance that the answer wins; here, as in TRL, the
    chosen one wins surely (P = 1 and 0). The sum is TRL's; the authors' code halves it. A prompt's loss is in nats²:
    at β = 0.001 it begins at 2·500² = 500,000. Example: β = 0.1, a = 2 and −2: (2 − 5)² + (−2 + 5)² = 18.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: the same answers under the reference model; required.
        beta: β = 1/η, 1/nat: the goals are ±1/(2β) nats.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, or without reference.
    """
    reference = check_reference("sppo_hard_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    # a = r / β, so that a − 1/(2β) = (r − ½) / β.
    pairs = ((chosen - 0.5) / beta)[:, None] ** 2 + ((rejected + 0.5) / beta) ** 2
    loss = average_over_pairs(pairs, present_answers(policy))
    return LossOutput(loss, chosen.detach(), rejected.detach())
