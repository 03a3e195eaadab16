"""What a training log reports beside the Trainer's own numbers: means over prompts, tokens, speed, memory, costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from align.training.metrics import MeanMeter, means
from align.training.peak_memory import peak_memory

if TYPE_CHECKING:
    from torch import Tensor

    from align.reference.sources import Reference

Sum = Callable[[Sequence[int]], list[float]]


class TrainingLog:
    """Collects between two logs what each process has seen.

    Args:
        sum_over_groups: sums counts over the data-parallel groups.
        reduce: sums a tensor over all processes; the ranks of a group hold the same, which cancels in a mean.
    """

    def __init__(self, sum_over_groups: Sum, reduce: Callable[[Tensor], Tensor]) -> None:
        self._sum, self._reduce = sum_over_groups, reduce
        self._meter = MeanMeter()
        self._tokens = 0
        self._reference_seen = (0, 0)
        self._logged_at = time.perf_counter()

    def add(self, metrics: Tensor, weights: Tensor, real: Tensor, tokens: int) -> None:
        """Takes in `[B, len(METRICS)]` metrics, `[B]` weights of the losses and what is real, and the tokens read."""
        self._meter.add(metrics, weights, real)
        self._tokens += tokens

    def pop(self, history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The metrics since the last call; `history`, which a checkpoint keeps, has the tokens before them."""
        now = time.perf_counter()
        elapsed, self._logged_at = now - self._logged_at, now
        tokens = self._sum([self._tokens])[0]
        self._tokens = 0
        sums = self._meter.pop()
        named = {} if sums is None else means(self._reduce(sums))
        named.pop("loss", None)  # the Trainer's own loss stays under that name
        return {
            **named,
            # The history survives a checkpoint, so a resumed run goes on counting.
            "num_tokens": tokens + _last(history, "num_tokens"),
            "tokens_per_second": tokens / max(elapsed, 1e-9),
            "memory/peak_gb": peak_memory() / 1e9,
        }

    def reference_costs(self, reference: Reference, history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """What the reference has read and what came from its cache, evaluation included, since the run began."""
        usage = reference.usage
        counts = [usage.tokens - self._reference_seen[0], usage.cached - self._reference_seen[1]]
        self._reference_seen = (usage.tokens, usage.cached)
        names = ("reference/tokens", "reference/cached")
        return {
            name: _last(history, name) + count for name, count in zip(names, self._sum(counts), strict=True)
        }


def _last(history: Sequence[Mapping[str, Any]], name: str) -> float:
    """The latest value that was logged under `name`; 0 before the first."""
    return next((float(entry[name]) for entry in reversed(history) if name in entry), 0.0)
