"""EXO on pairs: the reverse KL divergence between the model's and the labels' preference (arXiv 2402.00856)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from losses._pairs import average_over_pairs, check_reference, present_answers
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps


def exo_pair_loss(
    policy: PairLogps, reference: PairLogps | None, *, beta: float, label_smoothing: float
) -> LossOutput:
    """The EXO objective with preference labels (arXiv 2402.00856, Eq. 16), averaged over the pairs of a prompt.

        p_j  = σ( β·[log π(y_w) − log π_ref(y_w)] − β·[log π(y_l^j) − log π_ref(y_l^j)] )
        loss = mean_j [ p_j·log( p_j / (1 − ε) ) + (1 − p_j)·log( (1 − p_j) / ε ) ]

    DPO's loss is the KL divergence the other way round, from the labels to the model. Without smoothing the
    labels give the rejected answer no chance, and the divergence is infinite: ε has to be above 0. Example:
    margin 0.4 (p = 0.5987), ε = 0.001: 0.5987·log(0.5987/0.999) + 0.4013·log(0.4013/0.001) = 2.0989.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: the same answers under the reference model; required.
        beta: β, the paper's β_π, 1/nat.
        label_smoothing: ε in (0, 0.5), assumed chance that a preference label is wrong.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, ε outside (0, 0.5), or without reference.
    """
    if not 0.0 < label_smoothing < 0.5:
        raise ValueError(f"exo_pair_loss: label_smoothing must lie in (0, 0.5), got {label_smoothing}")
    reference = check_reference("exo_pair_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    margin = chosen[:, None] - rejected
    right = torch.sigmoid(margin) * (F.logsigmoid(margin) - math.log1p(-label_smoothing))
    wrong = torch.sigmoid(-margin) * (F.logsigmoid(-margin) - math.log(label_smoothing))
    loss = average_over_pairs(right + wrong, present_answers(policy))
    return LossOutput(loss, chosen.detach(), rejected.detach())
