"""PoFT: SFT whose rows weigh by how likely aligned models find their answers (arXiv 2412.12865)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from losses._pairs import check_reference, declared_column
from losses.rewards import mean_logp_reward
from losses.types import LossOutput, PairLogps


def poft_loss(
    policy: PairLogps, reference: PairLogps | None, *, beta: float = 1.0, gamma: float = 0.0
) -> LossOutput:
    """The PoFT objective against one aligned model with the policy's tokenizer, which is the reference.

        loss = −log σ( β·[mean(y_w) − mean_ref(y_w)] + γ ),      mean(y) = log π(y|x) / |y|

    Its gradient is `τ = β·σ(−(β·[mean(y_w) − mean_ref(y_w)] + γ))` times that of SFT: a row counts less the likelier
    the policy already finds its answer beside the aligned model. Rejected answers take no part.

    Example: log-probs −20 and −22 over 10 tokens, β = 1, γ = 0: `−log σ(0.2)` = 0.598.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, with their lengths in tokens; M = 0 is usual.
        reference: the aligned model's of the same answers; required.
        beta: β, scale of the difference of mean log-probs a token, 1/nat; the paper has none, which is 1.
        gamma: γ, added to the difference, dimensionless; the paper has none, which is 0.

    Returns:
        loss `[B]`; rewards `β·[mean(y) − mean_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, or without reference.
    """
    reference = check_reference("poft_loss", policy, reference)
    chosen, rejected = (
        own - aligned
        for own, aligned in zip(
            mean_logp_reward(policy, beta=beta), mean_logp_reward(reference, beta=beta), strict=True
        )
    )
    return LossOutput(_loss(chosen, gamma), chosen.detach(), rejected.detach())


def poft_columns_loss(
    policy: PairLogps, reference: PairLogps | None = None, *, beta: float = 1.0, gamma: float = 0.0
) -> LossOutput:
    """The PoFT objective against any aligned models, whose mean log-prob stands in the rows.

        loss = −log σ( β·[mean(y_w) − r̄] + γ ),      r̄ = (1/K)·Σ_k log p_k(y_w|x) / |y_w|_k

    Each of the K models counts tokens by its own tokenizer, so that they may differ from the policy's; r̄ is the mean of
    their logs. It is read from `policy.columns["aligned_logp"]`, `[B]`, nats a token.

    Example: log-prob −20 over 10 tokens, models at −1.5, −2.5 and −0.8: r̄ = −1.6, `−log σ(−0.4)` = 0.913.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, with their lengths in tokens, and the column.
        reference: not read; every loss has the same call.
        beta: β, scale of the difference of mean log-probs a token, 1/nat; the paper has none, which is 1.
        gamma: γ, added to the difference, dimensionless; the paper has none, which is 0.

    Returns:
        loss `[B]`; rewards `β·mean(y)`, detached, 0 for an absent answer: r̄ is of the chosen answer alone.

    Raises:
        ValueError: β ≤ 0, or rows without `aligned_logp`.
    """
    aligned = declared_column("poft_columns_loss", policy, "aligned_logp")
    chosen, rejected = mean_logp_reward(policy, beta=beta)
    return LossOutput(_loss(chosen - beta * aligned, gamma), chosen.detach(), rejected.detach())


def _loss(difference: Tensor, gamma: float) -> Tensor:
    """`[B]` of `[B]` differences that are scaled by β."""
    return -F.logsigmoid(difference + gamma)
