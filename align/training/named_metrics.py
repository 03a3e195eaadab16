"""Held-out metrics that settings name are asked for at the first measurement, not after the last step."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.core.errors import UserError
from align.runs.objective import resolved


class NamedMetrics(TrainerCallback):
    """Ends a run whose `objective` or `trainer.metric_for_best_model` is no metric that it measures.

    Args:
        objective: held-out metric that a sweeper optimises, with its `eval_`; or `auto`.
    """

    def __init__(self, objective: str) -> None:
        self.objective = objective

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Compares the names with those of `metrics`, suites' scores included.

        Raises:
            UserError: names the key and what there is.
        """
        names = {"objective": resolved(self.objective, metrics or {})}
        if args.metric_for_best_model is not None:
            names["trainer.metric_for_best_model"] = full_name(args.metric_for_best_model)
        for key, name in names.items():
            if name not in (metrics or {}):
                there = sorted(each for each in metrics or {} if each.startswith("eval_"))
                raise UserError(f"{key}={name} is no held-out metric: use {', '.join(there)}.")


def full_name(metric: str) -> str:
    """The name in results: `eval_` stands before each, and may be left out where the Trainer's keys name one."""
    return metric if metric.startswith("eval_") else f"eval_{metric}"
