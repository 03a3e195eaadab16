"""KTO: answers that are each good or bad, not pairs of them (arXiv 2402.01306), and APO-zero for the same rows."""

from __future__ import annotations

import torch
from torch import Tensor

from losses._pairs import check_positive
from losses.labels import average, kinds_of, log_ratios
from losses.types import LossOutput, PairLogps


def kto_loss(
    policy: PairLogps,
    reference: PairLogps | None,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> LossOutput:
    """The KTO objective (arXiv 2402.01306, Eq. 8), averaged over the judged answers of a prompt.

        r(y) = log π(y|x) − log π_ref(y|x)
        z_0  = max(0, mean of r(y′) over the step's unrelated answers y′),  without a gradient
        loss = λ_D·[1 − σ(β·(r(y) − z_0))] where y is desirable,  λ_U·[1 − σ(β·(z_0 − r(y)))] where it is not

    z_0 estimates β-free KL(π ‖ π_ref) over answers to other prompts, each scored behind this one. A step without any
    has z_0 = 0. A pair has one desirable and one undesirable answer, as TRL's unpaired rows of it.

    Args:
        policy: of all prompts of a step (`needs.batch: step`): log-probs `[B]` and `[B, M]`, nats, sums over tokens,
            and the column `label`.
        reference: the same answers under the reference model; required.
        beta: β, risk aversion and strength of the implicit KL constraint, 1/nat.
        desirable_weight: λ_D, weight of desirable answers.
        undesirable_weight: λ_U, weight of undesirable ones.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, or without reference.
    """
    check_positive("kto_loss", beta)
    ratios, kinds = log_ratios("kto_loss", policy, reference), kinds_of(policy)
    unrelated = torch.where(kinds.unrelated, ratios.detach(), 0.0).sum() / kinds.unrelated.sum().clamp(min=1)
    above = beta * (ratios - unrelated.clamp(min=0))
    return _judged(
        beta * ratios,
        desirable_weight * torch.sigmoid(-above),
        undesirable_weight * torch.sigmoid(above),
        policy,
    )


def apo_zero_unpaired_loss(policy: PairLogps, reference: PairLogps | None, *, beta: float) -> LossOutput:
    """APO-zero over single answers (arXiv 2408.06266, Eq. 7, term by term), averaged over those of a prompt.

        loss = 1 − σ(β·r(y)) where y is desirable,  σ(β·r(y)) where it is not,  r(y) = log π(y|x) − log π_ref(y|x)

    KTO with z_0 = 0: for desirable answers that are better than what the model writes by itself.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens, and the column `label`.
        reference: the same answers under the reference model; required.
        beta: β, strength of the implicit KL constraint, 1/nat.

    Returns:
        loss `[B]`; rewards `β·r(y)`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, or without reference.
    """
    check_positive("apo_zero_unpaired_loss", beta)
    rewards = beta * log_ratios("apo_zero_unpaired_loss", policy, reference)
    return _judged(rewards, torch.sigmoid(-rewards), torch.sigmoid(rewards), policy)


def _judged(rewards: Tensor, desirable: Tensor, undesirable: Tensor, policy: PairLogps) -> LossOutput:
    """Each answer's loss by its label, `[B, 1 + M]` both, averaged over the judged answers of a prompt."""
    kinds, rewards = kinds_of(policy), rewards.detach()
    losses = torch.where(kinds.desirable, desirable, undesirable)
    return LossOutput(average(losses, kinds.desirable | kinds.undesirable), rewards[:, 0], rewards[:, 1:])
