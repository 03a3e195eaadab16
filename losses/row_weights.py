"""Any loss, in which each row counts as its own weight says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from losses._pairs import declared_column
from losses.types import LossOutput, PairLogps

Loss = Callable[[PairLogps, PairLogps | None], LossOutput]


def row_weighted_loss(policy: PairLogps, reference: PairLogps | None = None, *, loss: Loss) -> LossOutput:
    """`w·loss` for each row, w its number `policy.columns["weight"]`, `[B]`; rewards are the loss's own.

    A step is the mean of that over its prompts, not over their weights: weights of 2 everywhere double every step, and
    a row of weight 0 counts among the prompts. Weights around 1 leave the learning rate what it was.

    Example: losses 0.7 and 0.2 of rows that weigh 1 and 0.5: 0.7 and 0.1.

    Args:
        policy: log-probs `[B]` and `[B, M]`; with all that the loss reads, and the column.
        reference: where the loss has one.
        loss: with its settings filled in.

    Returns:
        loss `[B]`; rewards of the loss, detached, 0 for an absent answer.

    Raises:
        ValueError: rows without `weight`, and what the loss raises.
    """
    weights = declared_column("row_weighted_loss", policy, "weight")
    output = loss(policy, reference)
    return replace(output, loss=weights * output.loss)
