"""Training rows whose positions are drawn anew for each epoch (`positions.redraw=epoch`).

The epoch travels with each row's number, from the sampler to whatever worker reads the row, so that a row's positions
follow from seed, place, number and epoch alone: the same in every process, and in a run that goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset, Sampler

from align.data.positions import place_row
from align.data.stored_rows import position_columns, to_example

if TYPE_CHECKING:
    from align.data.dataset import PreferenceData
    from align.data.positions import Placement


class EpochIndex(int):
    """The number of a row, and the epoch that it is read in: `EpochIndex(7)` with `epoch` 2."""

    epoch = 0


class EpochIndices(Sampler[int]):
    """Another sampler's numbers, each with the epoch that this one is in."""

    def __init__(self, sampler: Any) -> None:
        """`sampler` has an `epoch` and a `set_epoch`."""
        self.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """The other's."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        for number in self.sampler:
            index = EpochIndex(number)
            index.epoch = self.sampler.epoch
            yield index

    def __len__(self) -> int:
        return len(self.sampler)


class RedrawnRows(Dataset):
    """Stored rows at the positions of the epoch that an `EpochIndex` names; those of epoch 0 are the stored ones."""

    def __init__(self, rows: Any, placement: Placement, *, seed: int) -> None:
        """Rows as `load_preference_data` gives them, the placement that has placed them, and its seed."""
        self.rows, self.placement, self.seed = rows, placement, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, epoch = self.rows[int(index)], getattr(index, "epoch", 0)
        example = to_example(row)
        if epoch == 0 or example.drawn is None:
            return dict(row)
        placed = place_row(example, self.placement, example.drawn, seed=self.seed, epoch=epoch)
        return {**row, **position_columns(placed)}


def training_rows(data: PreferenceData) -> Any:
    """The training rows, drawn anew for each epoch where that is asked for."""
    placement = data.positions.placement
    if placement is None or not data.positions.redrawn:
        return data.train
    return RedrawnRows(data.train, placement, seed=data.seed)
