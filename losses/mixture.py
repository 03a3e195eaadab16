"""A weighted sum of losses as one loss: a preference term with SFT beside it, or any others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from losses.types import LossOutput, PairLogps

Loss = Callable[[PairLogps, PairLogps | None], LossOutput]


def mixture_loss(
    policy: PairLogps,
    reference: PairLogps | None = None,
    *,
    losses: Mapping[str, Loss],
    weights: Mapping[str, float],
) -> LossOutput:
    """`Σ_k w_k·loss_k` over the losses of a mapping; rewards are those of the first.

    Each loss keeps its own settings, its own average over a prompt's rejected answers and its own checks. Example:
    DPO of a margin of 0.4 (0.5130) and SFT of 2 nats a token, weights 1 and 0.1: 0.7130.

    Args:
        policy: log-probs `[B]` and `[B, M]`; with all that any of the losses reads (`nll`, `short`).
        reference: where one of the losses has one; those without do not read it.
        losses: by a name of your choice, settings filled in.
        weights: a weight for each name, no unit, 0 or more.

    Returns:
        loss `[B]`; rewards of the first loss, detached, 0 for an absent answer.

    Raises:
        ValueError: no losses, other names in `weights` than in `losses`, a weight below 0 or no number; and what
            the losses raise.
    """
    _check(losses, weights)
    outputs = {name: loss(policy, reference) for name, loss in losses.items()}
    total = torch.stack([weights[name] * output.loss for name, output in outputs.items()]).sum(dim=0)
    first = next(iter(outputs.values()))
    return LossOutput(total, first.chosen_reward, first.rejected_reward)


def _check(losses: Mapping[str, Loss], weights: Mapping[str, float]) -> None:
    """Refuses what cannot be summed, by the name that is wrong."""
    if not losses or losses.keys() != weights.keys():
        raise ValueError(
            f"mixture_loss: every loss needs a weight of its name; losses: {', '.join(losses) or 'none'}; "
            f"weights: {', '.join(weights) or 'none'}"
        )
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight < math.inf:
            raise ValueError(f"mixture_loss: weights.{name} must be a number of 0 or more, got {weight}")
