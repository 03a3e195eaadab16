"""What training and evaluation report for each prompt, under TRL's names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from align.longseq.logps import sum_dtype
from align.training.metric_names import CHOSEN, MARGINS, METRICS, REJECTED
from losses.labels import kinds_of

if TYPE_CHECKING:
    from losses.types import LossOutput, PairLogps


def prompt_metrics(logps: PairLogps, output: LossOutput) -> Tensor:
    """One row a prompt, one column for each of `METRICS`.

    With several rejected answers a prompt's value is the mean over those that are present. A prompt without any has
    NaN in the columns that compare, and takes no part in their means. Where answers have labels, the good ones count
    as chosen and the bad ones as rejected.

    Args:
        logps: the policy's, `[B]` and `[B, M]`.
        output: the loss function's.

    Returns:
        `[B, len(METRICS)]`, `sum_dtype` of the device (fp64, where there is one), detached.
    """
    kinds = kinds_of(logps)
    rewards = torch.cat([output.chosen_reward[:, None], output.rejected_reward], dim=1)
    sums = torch.cat([logps.chosen[:, None], logps.rejected], dim=1)
    margins = _mean_present(rewards, kinds.desirable)[:, None] - rewards
    compared = kinds.undesirable & kinds.desirable.any(dim=1, keepdim=True)
    columns = [
        output.loss,
        _mean_present(rewards, kinds.desirable),
        _mean_present(rewards, kinds.undesirable),
        _mean_present(margins, compared),
        _mean_present((margins > 0).to(margins.dtype), compared),
        _mean_present(sums, kinds.desirable),
        _mean_present(sums, kinds.undesirable),
    ]
    return torch.stack([column.detach().to(sum_dtype(column.device)) for column in columns], dim=1)


class MeanMeter:
    """Means of `METRICS` over prompts; sums live on the device until they are read.

    The loss is a weighted mean, as the loss of a step is; all else counts every prompt once. NaN stands for a
    comparison without a rejected answer, and is left out; beside a loss that is not finite it is a value like any
    other, which makes the mean NaN.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, rows: Tensor, weights: Tensor | None = None, real: Tensor | None = None) -> None:
        """Takes in values of B prompts, without a wait for the device.

        Args:
            rows: `[B, len(METRICS)]`.
            weights: `[B]` of their losses; None is 1 each.
            real: `[B]` bool; what is False counts nowhere. None counts all.
        """
        diverged = ~rows[:, METRICS.index("loss")].isfinite()
        absent = rows.isnan() & ~diverged[:, None]
        if real is not None:
            absent |= ~real[:, None]
        counts = (~absent).to(rows.dtype)
        if weights is not None:
            counts[:, METRICS.index("loss")] *= weights.to(rows)
        sums = torch.stack([(rows.masked_fill(absent, 0.0) * counts).sum(0), counts.sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums

    def pop(self) -> Tensor | None:
        """`[2, len(METRICS)]` sums and counts since the last call; None without any prompt."""
        sums, self._sums = self._sums, None
        return sums


def means(sums: Tensor) -> dict[str, float]:
    """`{name: mean}` from `[2, len(METRICS)]` sums and counts; names without a count are left out.

    Where no prompt has both a good and a bad answer the margin is that of their means, as TRL's KTO logs it.
    """
    totals, counts = sums.tolist()
    found = {
        name: total / count for name, total, count in zip(METRICS, totals, counts, strict=True) if count > 0
    }
    if MARGINS not in found and {CHOSEN, REJECTED} <= found.keys():
        found[MARGINS] = found[CHOSEN] - found[REJECTED]
    return found


def mean_metrics(table: Tensor, weights: Tensor, *, prefix: str) -> dict[str, float]:
    """`{prefix_name: mean}` of `[n, len(METRICS)]` values and the `[n]` weights of their losses; n may be 0."""
    meter = MeanMeter()
    meter.add(table, weights)
    sums = meter.pop()
    return {} if sums is None else {f"{prefix}_{name}": value for name, value in means(sums).items()}


def _mean_present(values: Tensor, present: Tensor) -> Tensor:
    """`[B]` mean over the present ones of `[B, n]`; NaN where there is none."""
    return torch.where(present, values, 0.0).sum(1) / present.sum(1)
