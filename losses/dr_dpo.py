"""Dr. DPO: DPO whose worst pairs, likely mislabelled ones, count less (arXiv 2407.07880)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from losses._pairs import check_reference, present_answers
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps

_NOTHING = -1e30  # the exponent of what is absent: finite, so that it has no gradient of NaN


def dr_dpo_loss(
    policy: PairLogps, reference: PairLogps | None, *, beta: float, beta_prime: float
) -> LossOutput:
    """The Dr. DPO objective (arXiv 2407.07880): a soft minimum over the pairs of a step in place of their mean.

        ℓ    = −log σ( β·[log π(y_w) − log π_ref(y_w)] − β·[log π(y_l) − log π_ref(y_l)] )
        loss = −β'·log mean exp(−ℓ / β')

    The mean is over the pairs of a prompt, then over the prompts of the step. A pair weighs `exp(−ℓ / β')` in the
    gradient: one that the policy finds wrong by far has little say. β' → ∞ is DPO. Example: margins 0.4 and −0.2,
    β' = 1: −log((0.5987 + 0.4502)/2) = 0.6455, where the mean of DPO's losses is 0.6556.

    Args:
        policy: of all prompts of a step (`needs.batch: step`): log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: the same answers under the reference model; required.
        beta: β, strength of the implicit KL constraint, 1/nat.
        beta_prime: β', nats of loss over which a pair's weight falls by a factor of e.

    Returns:
        loss `[B]`, the step's for every prompt that has a rejected answer, 0 for the others; rewards
        `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, β' ≤ 0, or without reference.
    """
    if not beta_prime > 0:
        raise ValueError(f"dr_dpo_loss: beta_prime must be above 0, got {beta_prime}")
    reference = check_reference("dr_dpo_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    present = present_answers(policy)
    compared = present.any(dim=1)
    exponents = torch.where(present, F.logsigmoid(chosen[:, None] - rejected) / beta_prime, _NOTHING)
    # Logarithms of means: first over the pairs of each prompt, then over the prompts that have any.
    pairs = present.sum(dim=1).clamp(min=1).to(exponents)
    of_prompt = torch.logsumexp(exponents, dim=1) - pairs.log()
    prompts = compared.sum().clamp(min=1).to(exponents)
    step = torch.logsumexp(torch.where(compared, of_prompt, _NOTHING), dim=0) - prompts.log()
    loss = torch.where(compared, -beta_prime * step, 0.0)
    return LossOutput(loss, chosen.detach(), rejected.detach())
