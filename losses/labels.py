"""Answers by what they are worth, whether a row compares several of them or labels one.

Rows of a method that declares `needs.columns: {label: label}` have `PairLogps.columns["label"]`, `[B, 1 + M]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from losses._pairs import check_reference
from losses.types import PairLogps

LABEL = "label"  # the column
DESIRABLE, UNDESIRABLE, UNRELATED = 1, 0, -1


@dataclass(frozen=True)
class Kinds:
    """Which answers are what, `[B, 1 + M]` bool each, False for absent ones.

    Attributes:
        desirable: what the policy is to write.
        undesirable: what it is not to write.
        unrelated: answers to other prompts, which are not judged.
    """

    desirable: Tensor
    undesirable: Tensor
    unrelated: Tensor


def kinds_of(policy: PairLogps) -> Kinds:
    """By the column `label`; without it the chosen answer is desirable and every rejected one undesirable."""
    lengths = torch.cat([policy.chosen_length[:, None], policy.rejected_length], dim=1)
    labels = policy.columns.get(LABEL)
    if labels is None:
        labels = torch.full_like(lengths, UNDESIRABLE)
        labels[:, 0] = DESIRABLE
    return Kinds(*((lengths > 0) & (labels == kind) for kind in (DESIRABLE, UNDESIRABLE, UNRELATED)))


def log_ratios(name: str, policy: PairLogps, reference: PairLogps | None) -> Tensor:
    """`[B, 1 + M]` `log π(y|x) − log π_ref(y|x)` of all answers, the chosen one's first; 0 for an absent one.

    Raises:
        ValueError: without reference, or where its shape is not the policy's.
    """
    reference = check_reference(name, policy, reference)
    rejected = torch.where(policy.rejected_length > 0, policy.rejected - reference.rejected, 0.0)
    return torch.cat([(policy.chosen - reference.chosen)[:, None], rejected], dim=1)


def average(values: Tensor, mask: Tensor) -> Tensor:
    """`[B, 1 + M] → [B]`: the mean of a prompt's values where `mask`; 0 for a prompt without any."""
    return torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
