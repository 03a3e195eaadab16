"""The held-out metric that a run is judged by: what a sweeper optimises and `align report` ranks by."""

from __future__ import annotations

from collections.abc import Collection

AUTO = "auto"
ACCURACY, LOSS = "eval_rewards/accuracies", "eval_loss"


def resolved(objective: str, metrics: Collection[str]) -> str:
    """The metric that `objective` stands for in a run.

    Args:
        objective: a metric's name, or `auto`: the reward accuracy, and the loss where no row has a rejected answer.
        metrics: names of what the run has measured.
    """
    if objective != AUTO:
        return objective
    return ACCURACY if ACCURACY in metrics else LOSS
