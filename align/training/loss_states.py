"""What a loss remembers from step to step (`losses.LossState`), in checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from align.core.errors import UserError
from align.core.files import write_json
from align.training.methods import Method
from losses import LossState

FILE = "loss_state.json"


class LossStates:
    """A `saving.Kept`: the states of a method's loss, the same on every process.

    Args:
        states: by the names of the loss's settings.
    """

    def __init__(self, states: Mapping[str, LossState]) -> None:
        self._states = states

    @classmethod
    def of(cls, method: Method) -> tuple[LossStates, ...]:
        """What a checkpoint keeps of a method's loss: nothing for most."""
        states = method.states()
        return (cls(states),) if states else ()

    def save(self, folder: Path, *, writes: bool) -> None:
        """See `saving.Kept`; JSON holds fp64 numbers to the last bit."""
        if writes:
            write_json(folder / FILE, {name: state.state_dict() for name, state in self._states.items()})

    def load(self, folder: Path) -> None:
        """See `saving.Kept`."""
        try:
            saved = json.loads((folder / FILE).read_text(encoding="utf-8"))
            for name, state in self._states.items():
                state.load_state_dict(saved[name])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / FILE}, what the loss has learnt from earlier steps, cannot be read: go on from another "
                "checkpoint, or begin anew with resume=never."
            ) from error
