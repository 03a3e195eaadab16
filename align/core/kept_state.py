"""What a part of training keeps beside the weights, so that a run that is broken off goes on as if it were not."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class Kept(Protocol):
    """What a checkpoint keeps beside the Trainer's own files, sealed with the rest."""

    def save(self, folder: Path, *, writes: bool) -> None:
        """Adds to a checkpoint; every process calls it, and those write that `writes` says."""

    def load(self, folder: Path) -> None:
        """The inverse, before the run goes on; every process calls it. Raises UserError where it is not there."""
