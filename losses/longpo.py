"""LongPO: DPO on the long context against a reference on the short one (arXiv 2502.13922)."""

from __future__ import annotations

import torch.nn.functional as F

from losses._pairs import average_over_pairs, check_reference, present_answers
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps


def longpo_loss(
    policy: PairLogps,
    reference: PairLogps | None,
    *,
    beta: float,
    preference_weight: float,
    nll_weight: float,
) -> LossOutput:
    """The LongPO objective (arXiv 2502.13922), averaged over the pairs of a prompt.

        z    = β·[log π(y_S|x_L) − log π_ref(y_S|x_S)] − β·[log π(y_L|x_L) − log π_ref(y_L|x_S)]
        loss = λ·(−log σ(z)) + w·NLL

    The reference sees the short context x_S, so the KL constraint from short to long is implicit and the
    margin does not start at 0. NLL is the mean over the whole chosen row: document, question and answer.

    Args:
        policy: on the long context: log-probs `[B]` and `[B, M]`, nats, sums over tokens (and turns);
            `nll` `[B]` with scope `sequence` unless `nll_weight` is 0.
        reference: on the short context, summed over turns; required.
        beta: β, strength of the implicit KL constraint, 1/nat.
        preference_weight: λ, weight of the preference term.
        nll_weight: w, weight of the NLL term.

    Returns:
        loss `[B]`; rewards `β·[log π(y|x_L) − log π_ref(y|x_S)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: without reference, or without `policy.nll` where `nll_weight` is not 0.
    """
    reference = check_reference("longpo_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    pairs = -F.logsigmoid(chosen[:, None] - rejected)
    loss = preference_weight * average_over_pairs(pairs, present_answers(policy))
    if nll_weight != 0:
        if policy.nll is None:
            raise ValueError(
                "longpo_loss with nll_weight other than 0 needs policy.nll (needs.nll_scope: sequence)"
            )
        loss = loss + nll_weight * policy.nll
    return LossOutput(loss, chosen.detach(), rejected.detach())
