"""Which data-parallel group reads which of a step's rows, so that no group is long done before the others.

transformers' `batch_rebalance` in the form that rows shared by a group allow: a step keeps its rows, whose loss is the
mean over all of them, and every micro-batch its number of rows. Rows are put into micro-batches of about equal cost,
the costliest row first, each where there is least so far; the costliest micro-batches are read first, by all groups at
once; and the group that has had least gets the largest of them. Groups then wait little for each other, be it at the
step's end (DDP) or in every layer (FSDP, ZeRO-3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from align.data.orders import Order


@dataclass(frozen=True)
class Arrangement:
    """The order of an epoch's rows, and the costs by which a step's are shared out.

    Attributes:
        order: what a step holds.
        tokens: `[n]` of each row.
        costs: `[n]` of each row; None leaves a step's rows as the order has them.
        batch: rows of a group's micro-batch.
        groups: data-parallel ones.
        accumulation: micro-batches of a step.
    """

    order: Order
    tokens: np.ndarray
    costs: np.ndarray | None
    batch: int
    groups: int
    accumulation: int

    def rows(self, rng: np.random.Generator) -> Iterator[int]:
        """Every row's number once, as batches are cut from them: a micro-batch for each group, then the next ones."""
        prompts = self.batch * self.groups * self.accumulation
        found = self.order.arrange(self.tokens, prompts=prompts, rng=rng)
        for start in range(0, len(found), prompts):
            step = found[start : start + prompts]
            if self.costs is not None:
                step = step[share_out(self.costs[step], batch=self.batch, groups=self.groups)]
            yield from step.tolist()


def share_out(costs: np.ndarray, *, batch: int, groups: int) -> np.ndarray:
    """`[m]` a step's rows in the order in which they are read: `batch` for each group, then the next micro-batches.

    Costs 8 1 1 8 for two groups that read a row at a time: 8 8, then 1 1, and not 8 1, then 1 8.

    Args:
        costs: `[m]` of the step's rows; an epoch's last step may have too few for every group, whose last micro-batches
            then stay empty.
        batch: rows of a micro-batch.
        groups: how many read at once.
    """
    held, totals = _micro_batches(costs, batch)
    full = len(costs) // batch
    ranking = sorted(range(full), key=lambda each: (-totals[each], each))
    places = list(range(len(held)))  # the micro-batch that comes there; one that is not full stays the last
    load = [0.0] * groups
    for first in range(0, full, groups):
        at_once = ranking[first : first + groups]
        for group, each in zip(sorted(range(len(at_once)), key=load.__getitem__), at_once, strict=True):
            places[first + group] = each
            load[group] += totals[each]
    return np.array([row for place in places for row in held[place]], dtype=np.int64)


def _micro_batches(costs: np.ndarray, batch: int) -> tuple[list[list[int]], Sequence[float]]:
    """Rows of about equal cost by micro-batch, and the sum of each; all are full but the last."""
    count = -(-len(costs) // batch)
    held: list[list[int]] = [[] for _ in range(count)]
    room = [min(batch, len(costs) - batch * each) for each in range(count)]
    least = [(0.0, each) for each in range(count)]
    heapify(least)
    totals = [0.0] * count
    for row in np.argsort(-costs, kind="stable").tolist():
        total, each = heappop(least)
        held[each].append(row)
        totals[each] = total + float(costs[row])
        if len(held[each]) < room[each]:
            heappush(least, (totals[each], each))
    return held, totals
