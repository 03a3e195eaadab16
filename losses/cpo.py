"""CPO: DPO with a uniform reference and an NLL term that keeps the chosen answers likely."""

from __future__ import annotations

from losses._pairs import (
    average_over_pairs,
    check_label_smoothing,
    check_positive,
    chosen_nll,
    present_answers,
    rejected_sums,
    smoothed_log_loss,
)
from losses.types import LossOutput, PairLogps


def cpo_loss(
    policy: PairLogps,
    reference: PairLogps | None = None,
    *,
    beta: float,
    nll_weight: float,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """The CPO objective (arXiv 2401.08417, Eq. 3 and its NLL term), averaged over the pairs of a prompt.

        z_j  = β·log π(y_w) − β·log π(y_l^j)
        loss = mean_j [ −(1 − ε)·log σ(z_j) − ε·log σ(−z_j) ] − λ·mean(y_w)

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: not read; every loss has the same call.
        beta: β, scale of the summed log-prob, 1/nat.
        nll_weight: λ, weight of the chosen answer's mean negative log-prob a token.
        label_smoothing: ε in [0, 0.5), assumed chance that a preference label is wrong.

    Returns:
        loss `[B]`; rewards `β·log π(y)`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, or ε outside [0, 0.5).
    """
    check_positive("cpo_loss", beta)
    check_label_smoothing("cpo_loss", label_smoothing)
    present = present_answers(policy)
    chosen, rejected = beta * policy.chosen, beta * rejected_sums(policy, present)
    pairs = smoothed_log_loss(chosen[:, None] - rejected, label_smoothing)
    loss = average_over_pairs(pairs, present) + nll_weight * chosen_nll(policy)
    return LossOutput(loss, chosen.detach(), rejected.detach())
