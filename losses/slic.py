"""SLiC-HF: a hinge on the log-probs themselves, without a reference, and an NLL term (arXiv 2305.10425)."""

from __future__ import annotations

import torch

from losses._pairs import average_over_pairs, chosen_nll, present_answers, rejected_sums
from losses.types import LossOutput, PairLogps


def slic_loss(
    policy: PairLogps, reference: PairLogps | None = None, *, margin: float, nll_weight: float
) -> LossOutput:
    """The SLiC-HF objective (arXiv 2305.10425), averaged over the pairs of a prompt.

        loss = mean_j max(0, δ − log π(y_w) + log π(y_l^j)) − λ·mean(y_w)

    The paper's second term keeps the model near a target y_ref: here the chosen answer, its mean log-prob a token,
    as in the other losses. Example: sums −20 and −20.5, δ = 1, λ = 0, loss 1 − 0.5 = 0.5.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: not read; every loss has the same call.
        margin: δ, nats by which the chosen answer is to be likelier. TRL's hinge of β is β times this one of
            δ = 1/β.
        nll_weight: λ, weight of the chosen answer's mean negative log-prob a token.

    Returns:
        loss `[B]`; rewards `log π(y)`, detached, 0 for an absent answer.
    """
    present = present_answers(policy)
    rejected = rejected_sums(policy, present)
    pairs = torch.relu(margin - policy.chosen[:, None] + rejected)
    loss = average_over_pairs(pairs, present) + nll_weight * chosen_nll(policy)
    return LossOutput(loss, policy.chosen.detach(), rejected.detach())
