"""What a trainer leaves on disk: checkpoints that appear whole, and nothing that only unpickling could read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from align.core.bars import weight_bars_off
from align.core.errors import UserError, shortage
from align.core.kept_state import Kept
from align.models.renamings import saved_under_own_names
from align.runs import checkpoints

if TYPE_CHECKING:
    from torch import nn


class SealedCheckpoints(Trainer):
    """A Trainer whose checkpoints count once they are sealed; older ones go only after that."""

    checkpoint_limit: int | None = None
    kept: tuple[Kept, ...] = ()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Saves, seals, and only then lets go of older checkpoints.

        Raises:
            UserError: the disk or the quota is full; what was begun is removed, the last checkpoint stays.
        """
        output = Path(self._get_output_dir(trial=trial))
        folder = output / f"{checkpoints.PREFIX}{self.state.global_step}"
        if self.args.should_save:
            # A torn one of the same step: its files would be sealed with the new ones.
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with _room_for(folder), saved_under_own_names(model):
            super()._save_checkpoint(model, trial)
            for part in self.kept:
                part.save(folder, writes=self.args.should_save)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with _room_for(folder):
                checkpoints.seal(folder)
            rotate_checkpoints(
                output_dir=str(output),
                save_total_limit=self.checkpoint_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def load_kept(self, checkpoint: str | bool | None) -> None:
        """Reads what a checkpoint keeps beside the Trainer's own files, where a run goes on from one.

        Args:
            checkpoint: as `Trainer.train` takes it: True is the last one.
        """
        found = get_last_checkpoint(str(self.args.output_dir)) if checkpoint is True else checkpoint
        for part in self.kept if found else ():
            part.load(Path(str(found)))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As `Trainer._save`, without the pickled arguments, which nobody reads and which may hold a token."""
        with weight_bars_off():
            super()._save(output_dir, state_dict)
        Path(output_dir or str(self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)


@contextmanager
def _room_for(folder: Path) -> Iterator[None]:
    """Turns a full disk into one sentence and takes the half-written checkpoint away."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = shortage(error)
        if reason is None:
            raise
        shutil.rmtree(folder, ignore_errors=True)
        kept = checkpoints.checkpoints(folder.parent)
        last = f"the last checkpoint is {kept[-1]}" if kept else "there is no earlier checkpoint"
        raise UserError(
            f"{folder} could not be written: {reason}; {last}: make room, and the same command goes on from it."
        ) from error
