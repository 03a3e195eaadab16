"""What the cache holds of a prompt, as one row of numbers: the sums that a reference gives of its answers.

Of a prompt with three answers the log-probs of the chosen and the two rejected ones; behind them, where tokens have
weights, their three weighted sums, and where a method cuts pairs (`needs.fronts`) two of the chosen answer and two of
the rejected ones. A batch whose longest prompt has A answers makes each of these A, or A − 1, numbers wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from align.longseq.moving import from_bits
from align.longseq.shared_prefix import SharedPrefixBatch
from losses.types import PairLogps


def widths_of(batch: SharedPrefixBatch) -> dict[str, int]:
    """How many numbers of each kind a row of the table has: `{"logps": A, "weighted": A, …}`, in their order."""
    first = batch.rows[0]
    answers, pairs = first.lengths.shape[1], first.cuts.shape[1]
    kinds = {"logps": answers, "weighted": first.weight_sum.shape[1]}
    return {
        name: width
        for name, width in (kinds | {"chosen_front": pairs, "rejected_front": pairs}).items()
        if width
    }


def to_table(logps: PairLogps) -> Tensor:
    """`[B, n]` the numbers of B prompts, as wide as `widths_of` says."""
    more = [logps.weighted, logps.chosen_front, logps.rejected_front]
    return torch.cat(
        [logps.chosen[:, None], logps.rejected, *(one for one in more if one is not None)], dim=1
    )


def to_logps(table: Tensor, batch: SharedPrefixBatch) -> PairLogps:
    """The log-probs that `to_table` was given, of the batch's prompts."""
    widths = widths_of(batch)
    parts = dict(zip(widths, table.split(list(widths.values()), dim=1), strict=True))
    sums, lengths = parts.pop("logps"), torch.cat([row.lengths for row in batch.rows])
    if "weighted" in parts:
        parts["weight"] = from_bits(torch.cat([row.weight_sum for row in batch.rows]))
    return PairLogps(
        sums[:, 0],
        sums[:, 1:],
        lengths[:, 0],
        lengths[:, 1:],
        weighted=parts.get("weighted"),
        weight=parts.get("weight"),
        chosen_front=parts.get("chosen_front"),
        rejected_front=parts.get("rejected_front"),
    )


def without_absent(values: Sequence[float], widths: dict[str, int], absent: int) -> tuple[float, ...]:
    """A row of the table without the places of answers that its prompt does not have.

    Of −7 −9 0 with one answer absent: −7 −9.
    """
    kept: list[float] = []
    at = 0
    for width in widths.values():
        kept += values[at : at + width - absent]
        at += width
    return tuple(kept)


def with_absent(entry: Sequence[float], widths: dict[str, int], absent: int) -> tuple[float, ...]:
    """The inverse of `without_absent`; absent answers have 0."""
    padded: list[float] = []
    at = 0
    for width in widths.values():
        padded += [*entry[at : at + width - absent], *[0.0] * absent]
        at += width - absent
    return tuple(padded)
