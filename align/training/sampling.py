"""Which process reads which row: data-parallel groups read different rows, the ranks of a group the same.

At the ragged end of an epoch some groups have a row fewer than others, yet all must make the same number of
forward passes. They read a placeholder then, which is told apart by `real` and counts nowhere: neither in
the loss, nor in the number of prompts it is divided by, nor in a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from align.longseq.shared_prefix import SharedPrefixBatch
from align.training.even_groups import Arrangement

PLACEHOLDER = -1


class EpochSampler(Sampler[int]):
    """Every row once an epoch, in an order that follows from (seed, epoch) alone, then placeholders.

    All processes draw the same order without talking to each other, and a resumed run draws it again.
    """

    def __init__(
        self, rows: int, *, multiple: int, seed: int | None, arrangement: Arrangement | None = None
    ) -> None:
        """Orders rows.

        Args:
            rows: how many there are.
            multiple: placeholders are added until the number of indices is a multiple of this.
            seed: of the order; None keeps the rows in file order.
            arrangement: the order with a seed; None shuffles.
        """
        self.rows, self.multiple, self.seed = rows, multiple, seed
        self.arrangement = arrangement
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The order is drawn anew for each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from self._rows()
        yield from [PLACEHOLDER] * (len(self) - self.rows)

    def _rows(self) -> Iterator[int]:
        if self.seed is None:
            return iter(range(self.rows))
        # A sequence as seed, so that (seed, epoch) and (seed + 1, epoch − 1) differ. Not torch's generator for the
        # CPU: of a seed it reads the lower 32 bits alone.
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.arrangement is None:
            return iter(rng.permutation(self.rows).tolist())
        return self.arrangement.rows(rng)

    def __len__(self) -> int:
        return -(-self.rows // self.multiple) * self.multiple


class MarkedRows(Dataset):
    """A dataset whose items say whether they are real: `(row, True)`, and `(row 0, False)` as placeholder."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.sampler: EpochSampler | None = None

    def set_epoch(self, epoch: int) -> None:
        """Passed on to the sampler, which accelerate no longer reaches once it skips a resumed epoch's batches."""
        if self.sampler is not None:
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, bool]:
        real = index != PLACEHOLDER
        return self.rows[index if real else 0], real


class MarkedCollator:
    """A collator over marked rows: adds `real` `[B]` to what the collator of the rows returns.

    It is an array, which stays on the CPU where a loader moves tensors to the device: nobody waits to read it.
    """

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, marked: Sequence[tuple[Any, bool]]) -> dict[str, Any]:
        """Collates the rows."""
        rows, real = zip(*marked, strict=True)
        return {**self.collator(list(rows)), "real": np.array(real)}


class DigestingCollator:
    """A collator whose batches know their digest, by which the ranks of a sequence-parallel group compare them.

    It is computed here, in a worker of the loader where there are any, while the last step runs.
    """

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """Collates the rows."""
        return {
            name: value.digested() if isinstance(value, SharedPrefixBatch) else value
            for name, value in self.collator(rows).items()
        }
