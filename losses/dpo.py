"""DPO, with the conservative variant and an NLL term (arXiv 2305.18290)."""

from __future__ import annotations

from losses._pairs import (
    average_over_pairs,
    check_label_smoothing,
    check_reference,
    chosen_nll,
    present_answers,
    smoothed_log_loss,
)
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps


def dpo_loss(
    policy: PairLogps,
    reference: PairLogps | None,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    nll_weight: float = 0.0,
) -> LossOutput:
    """The DPO objective (arXiv 2305.18290, Eq. 7), averaged over the pairs of a prompt.

        z_j  = β·[log π(y_w) − log π_ref(y_w)] − β·[log π(y_l^j) − log π_ref(y_l^j)]
        loss = mean_j [ −(1 − ε)·log σ(z_j) − ε·log σ(−z_j) ] − λ·mean(y_w)

    ε > 0 is conservative DPO (E. Mitchell's note of 2023); λ > 0 is the DPO + NLL of LongReward
    (arXiv 2410.21252).

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: the same answers under the reference model; required.
        beta: β, strength of the implicit KL constraint, 1/nat.
        label_smoothing: ε in [0, 0.5), assumed chance that a preference label is wrong.
        nll_weight: λ, weight of the chosen answer's mean negative log-prob a token.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: without reference, or with ε outside [0, 0.5).
    """
    check_label_smoothing("dpo_loss", label_smoothing)
    reference = check_reference("dpo_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    pairs = smoothed_log_loss(chosen[:, None] - rejected, label_smoothing)
    loss = average_over_pairs(pairs, present_answers(policy)) + nll_weight * chosen_nll(policy)
    return LossOutput(loss, chosen.detach(), rejected.detach())
