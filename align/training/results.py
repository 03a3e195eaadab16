"""What a run ends with: a table before/after, the same as JSON, and a picture of the training."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from align.core.readable import counted
from align.training.metric_names import COST_ROWS, ROWS, shown

PANELS = {"loss": "loss", "rewards/margins": "reward margin", "rewards/accuracies": "reward accuracy"}


def summary_table(results: Mapping[str, Mapping[str, float]], *, rows: int, kind: str) -> Table:
    """Held-out metrics before and after, then what the run cost.

    Args:
        results: `before`, `after` (metrics with the prefix `eval_`) and `training`.
        rows: number of held-out rows, for the title.
        kind: the method's name, for the title.
    """
    table = Table(title=escape(f"{kind}: {counted(rows, 'held-out row')}"), title_justify="left")
    table.add_column("")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for name, (label, form) in ROWS.items():
        before, after = results["before"].get(name), results["after"].get(name)
        if name in results["before"] and name in results["after"]:
            table.add_row(label, *_changed(before, after, form))
    table.add_section()
    for name, (label, form) in COST_ROWS.items():
        if name in results["training"]:
            table.add_row(label, "", form.format(results["training"][name]), "")
    return table


def _changed(before: float | None, after: float | None, form: str) -> tuple[str, str, str]:
    """Before, after and the change; None stands for a mean that is not finite."""
    first, last = shown(before, form), shown(after, form)
    if before is None or after is None:
        return first, last, ""
    change = after - before
    return first, last, ("+" if change >= 0 else "−") + form.format(abs(change))


def training_costs(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median speed, peak memory, tokens, the reference's share and seconds of a run's log history."""
    logs = [entry for entry in history if "tokens_per_second" in entry]
    costs: dict[str, float] = {}
    if logs:
        costs["tokens_per_second"] = statistics.median(entry["tokens_per_second"] for entry in logs)
        costs["memory/peak_gb"] = max(entry["memory/peak_gb"] for entry in logs)
        costs["num_tokens"] = logs[-1]["num_tokens"]
    references = [entry for entry in history if "reference/tokens" in entry]
    if references:
        costs |= {name: references[-1][name] for name in ("reference/tokens", "reference/cached")}
    runtimes = [entry["train_runtime"] for entry in history if "train_runtime" in entry]
    if runtimes:
        costs["train_runtime"] = runtimes[-1]
    return costs


def draw_training(
    history: Sequence[Mapping[str, Any]], before: Mapping[str, float], after: Mapping[str, float], path: Path
) -> None:
    """Loss, margin and accuracy over steps: training as a line with its running mean, held-out as marks."""
    from matplotlib.figure import Figure

    train = [entry for entry in history if "loss" in entry]
    held_out = [entry for entry in history if any(key.startswith("eval_") for key in entry)]
    last = max((entry["step"] for entry in history), default=0)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        points = [(entry["step"], entry[name]) for entry in train if name in entry]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color="#9db4c8", linewidth=1, label="training step")
            axes.plot(steps, _running_mean(values), color="#1f5a92", linewidth=2, label="running mean")
        marks = {0: before.get(f"eval_{name}"), last: after.get(f"eval_{name}")}
        marks |= {entry["step"]: entry.get(f"eval_{name}") for entry in held_out}
        shown = sorted((step, value) for step, value in marks.items() if value is not None)
        if shown:
            axes.plot(*zip(*shown, strict=True), "o--", color="#c8502d", linewidth=1, label="held-out")
        axes.set_title(label, loc="left", fontsize=11)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if name == "rewards/accuracies":
            axes.set_ylim(-0.03, 1.03)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _running_mean(values: Sequence[float], *, weight: float = 0.8) -> list[float]:
    """Exponential mean without the start's bias."""
    means, total, norm = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        means.append(total / norm)
    return means
