"""SIGTERM, as schedulers send it before they take a machine away: save at the next step and leave."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.distributed.host import several_processes, sum_numbers
from align.runs import exit_codes


class Preemption(TrainerCallback):
    """Within its `with` block SIGTERM asks for a checkpoint at the end of the running step, and then for the end.

    Launchers pass the signal to every process, but not at the same moment: after each step the processes agree,
    so that all of them save the same one. Outside the block SIGTERM ends a process at once, as it always does:
    there is nothing to save that the last checkpoint does not have.

    Attributes:
        stopped: whether training was ended by the signal.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> Preemption:
        """Takes the signal over."""
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives the signal back."""
        signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Has this step saved and training ended, on all processes or on none."""
        if self._agreed():
            self.stopped = control.should_save = control.should_training_stop = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the evaluation before the first step at once: there is nothing to save yet.

        Raises:
            SystemExit: with `exit_codes.STOPPED`, on all processes.
        """
        if state.global_step == 0 and self._agreed():
            raise SystemExit(exit_codes.STOPPED)

    def _agreed(self) -> bool:
        """Whether any process was asked."""
        if not several_processes():
            return self._asked
        return sum_numbers([int(self._asked)])[0] > 0
