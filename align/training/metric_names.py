"""Names of what training and evaluation report, and how tables show them."""

from __future__ import annotations

CHOSEN, REJECTED, MARGINS = "rewards/chosen", "rewards/rejected", "rewards/margins"
METRICS = (
    "loss",
    CHOSEN,
    REJECTED,
    MARGINS,
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


# Held-out metric → label and format of the table.
ROWS = {
    "eval_rewards/accuracies": ("reward accuracy", "{:.1%}"),
    "eval_rewards/margins": ("reward margin", "{:.4f}"),
    "eval_loss": ("loss", "{:.4f}"),
    "eval_logps/chosen": ("log-prob of the chosen answer", "{:.2f}"),
    "eval_logps/rejected": ("log-prob of a rejected answer", "{:.2f}"),
}


def shown(value: float | None, form: str) -> str:
    """A metric as a table has it; None stands for a mean that is not finite."""
    return "not finite" if value is None else form.format(value)


COST_ROWS = {
    "tokens_per_second": ("training speed", "{:.0f} tokens/s"),
    "memory/peak_gb": ("peak memory", "{:.2f} GB"),
    "num_tokens": ("tokens trained on", "{:.0f}"),
    "reference/tokens": ("tokens read by the reference", "{:.0f}"),
    "reference/cached": ("reference rows from the cache", "{:.0f}"),
    "train_runtime": ("training time", "{:.0f} s"),
}
