"""BCO: a binary classifier of good and bad answers whose logit is DPO's reward (arXiv 2404.04656)."""

from __future__ import annotations

import torch.nn.functional as F

from losses._pairs import check_positive
from losses.labels import average, kinds_of, log_ratios
from losses.states import RewardShift
from losses.types import LossOutput, PairLogps


def bco_loss(
    policy: PairLogps, reference: PairLogps | None, *, beta: float, shift: RewardShift
) -> LossOutput:
    """The BCO objective (arXiv 2404.04656): cross-entropy of `r − δ` against an answer's label.

        r(y) = β·[log π(y) − log π_ref(y)]
        loss = mean over desirable y: −log σ(r(y) − δ)  +  mean over undesirable y: −log σ(−(r(y) − δ))

    A pair has one of each, as TRL's `bco_pair`; a row with one labelled answer has one term. TRL 1.16
    keeps δ at 0. The paper's matching of the prompts that good and bad answers come from (a classifier of their
    embeddings, for labels that depend on the topic) is left out.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens; the column `label` where it is declared.
        reference: the same answers under the reference model; required.
        beta: β, strength of the implicit KL constraint, 1/nat.
        shift: δ, which learns from the rewards of every step.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, or without reference.
    """
    check_positive("bco_loss", beta)
    rewards = beta * log_ratios("bco_loss", policy, reference)
    kinds, logits = kinds_of(policy), rewards - shift.value
    loss = average(-F.logsigmoid(logits), kinds.desirable) + average(
        -F.logsigmoid(-logits), kinds.undesirable
    )
    rewards = rewards.detach()
    return LossOutput(loss, rewards[:, 0], rewards[:, 1:])
