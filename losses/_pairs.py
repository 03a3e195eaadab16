"""What every loss does alike: absent answers set aside, averages over the pairs of a prompt, checks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.types import PairLogps

LARGEST_EXPONENT = 30.0  # e³⁰ is 10¹³: its square and a model's gradient by it still fit into fp32


def present_answers(policy: PairLogps) -> Tensor:
    """`[B, M]` bool: False for an absent rejected answer."""
    return policy.rejected_length > 0


def rejected_sums(logps: PairLogps, present: Tensor) -> Tensor:
    """`[B, M]` summed log-probs, 0 and cut off from the gradient where absent, whatever stands there."""
    return torch.where(present, logps.rejected, 0.0)


def average_over_pairs(values: Tensor, present: Tensor) -> Tensor:
    """`[B, M] → [B]`: the mean over a prompt's present rejected answers; 0 for a prompt without any."""
    return torch.where(present, values, 0.0).sum(dim=1) / present.sum(dim=1).clamp(min=1)


def chosen_nll(policy: PairLogps) -> Tensor:
    """`[B]` mean negative log-prob a token of the chosen answer, in nats."""
    return -policy.chosen / policy.chosen_length


def smoothed_log_loss(margin: Tensor, label_smoothing: float) -> Tensor:
    """`−(1 − ε)·log σ(margin) − ε·log σ(−margin)`, the logistic loss for labels wrong with chance ε."""
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def finite_expm1(exponent: Tensor) -> Tensor:
    """`eˣ − 1`, exact near 0, continued beyond `LARGEST_EXPONENT` by its tangent there."""
    beyond = torch.relu(exponent - LARGEST_EXPONENT)
    return torch.expm1(exponent.clamp(max=LARGEST_EXPONENT)) + math.exp(LARGEST_EXPONENT) * beyond


def declared_column(name: str, policy: PairLogps, column: str) -> Tensor:
    """A number of the rows, `[B]` or `[B, 1 + M]`; raises ValueError where `needs.columns` does not declare it."""
    if column not in policy.columns:
        raise ValueError(f"{name} reads the rows' {column}, which needs.columns has to declare")
    return policy.columns[column]


def token_weighted(policy: PairLogps) -> tuple[Tensor, Tensor]:
    """`[B, 1 + M]` weighted sums and sums of weights, the chosen answer's first; all tokens weigh 1 without weights."""
    if policy.weighted is None or policy.weight is None:
        sums = torch.cat([policy.chosen[:, None], rejected_sums(policy, present_answers(policy))], dim=1)
        return sums, torch.cat([policy.chosen_length[:, None], policy.rejected_length], dim=1)
    return policy.weighted, policy.weight


def fronts_of_pairs(name: str, logps: PairLogps) -> tuple[Tensor, Tensor]:
    """`[B, M]` of the chosen and of the rejected answers; raises ValueError where `needs.fronts` does not ask for them.

    Without any rejected answer there are none to ask for.
    """
    if logps.chosen_front is not None and logps.rejected_front is not None:
        return logps.chosen_front, logps.rejected_front
    if logps.rejected.shape[1]:
        raise ValueError(
            f"{name} reads pairs as far as their shorter answer goes, which needs.fronts has to ask for"
        )
    return logps.rejected, logps.rejected


def collisions_of(name: str, policy: PairLogps) -> Tensor:
    """`[B, 1 + M]`, 0 where absent; raises ValueError where `needs.collision` does not ask for them."""
    if policy.collision is None:
        raise ValueError(f"{name} reads how sure the policy is, which needs.collision has to ask for")
    absent = ~present_answers(policy)
    rejected = policy.collision[:, 1:].masked_fill(absent, 0.0)
    return torch.cat([policy.collision[:, :1], rejected], dim=1)


def check_label_smoothing(name: str, label_smoothing: float) -> None:
    """Raises ValueError unless 0 ≤ ε < 0.5: from one half on the labels say nothing or the reverse."""
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"{name}: label_smoothing must lie in [0, 0.5), got {label_smoothing}")


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless β > 0: at 0 nothing is compared, and below 0 the rejected answer is preferred."""
    if not value > 0:
        raise ValueError(f"{name}: beta must be above 0, got {value}")


def check_not_negative(name: str, setting: str, value: float) -> None:
    """Raises ValueError unless a weight is 0 or more: below, it would ask for what the term is to prevent."""
    if not value >= 0:
        raise ValueError(f"{name}: {setting} must be 0 or more, got {value}")


def check_reference(name: str, policy: PairLogps, reference: PairLogps | None) -> PairLogps:
    """Returns the reference; raises ValueError where it is missing or of another shape than the policy."""
    if reference is None:
        raise ValueError(
            f"{name} compares the policy with a reference model: reference log-probs are required"
        )
    if reference.rejected.shape != policy.rejected.shape or reference.chosen.shape != policy.chosen.shape:
        raise ValueError(
            f"{name}: the reference has log-probs of shape {tuple(reference.rejected.shape)} for rejected answers, "
            f"the policy {tuple(policy.rejected.shape)}; both must score the same answers"
        )
    return reference
