"""What a callback of training keeps beside the weights, so that a run that is broken off goes on as if it were not."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class KeptState(Protocol):
    """A callback with a file of its own in every checkpoint, sealed with the rest; the same on every process."""

    def write_state(self, folder: Path) -> None:
        """Writes the file; called on one process."""

    def read_state(self, folder: Path) -> None:
        """Reads it, on every process, before training goes on; raises UserError where it is not there."""
