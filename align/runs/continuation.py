"""What may differ between two starts of one run: the number of processes and how a step's prompts are spread."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from align.core.errors import UserError
from align.core.files import write_json
from align.core.telling import is_first, tell
from align.distributed.wrappers import expected_wrapper
from align.runs.folder import RESUME

ROWS = "rows.json"  # in a run's folder: a digest of the rows that it was begun with

# Keys that leave the trajectory as it is, as long as a step has as many prompts.
FREE_KEYS = (
    "resume",
    "hydra",
    "launch",
    "objective",
    "parallel",
    "memory",
    "data.order.balance",
    "reference.cache",
    "reference.fill_only",
    "reference.sharding",
    "trainer.per_device_train_batch_size",
    "trainer.per_device_eval_batch_size",
    "trainer.gradient_accumulation_steps",
    "trainer.save_steps",
    "trainer.save_total_limit",
    "trainer.use_cpu",
)


class StepShape(TrainerCallback, ExportableState):
    """Writes into every checkpoint how its steps were made: processes, wrapper, prompts a step."""

    def __init__(self, processes: int, wrapper: str, prompts_per_step: int) -> None:
        self.processes = processes
        self.wrapper = wrapper
        self.prompts_per_step = prompts_per_step

    @classmethod
    def of(cls, args: TrainingArguments, degree: int) -> StepShape:
        """This start's.

        Args:
            args: the Trainer's arguments.
            degree: processes that share a row.
        """
        return cls(args.world_size, expected_wrapper(args), prompts_of_step(args, degree))

    def state(self) -> dict[str, Any]:
        """What trainer_state.json keeps."""
        return {"args": dict(vars(self)), "attributes": {}}


def prompts_of_step(args: TrainingArguments, degree: int) -> int:
    """Prompts of a global step, over accumulation and data-parallel groups of `degree` processes each."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * (args.world_size // degree)


@dataclass(frozen=True)
class RowsNote:
    """The rows that a run trains on and measures, noted in its folder when it begins.

    Attributes:
        digest: of their content and order.
        date: that their chat template wrote into prompts; a run that goes on after midnight takes it from here.
    """

    digest: str
    date: str | None = None

    @classmethod
    def read(cls, run: Path) -> RowsNote | None:
        """What a run's folder says; None for a run that has noted nothing."""
        try:
            return cls(**json.loads((run / ROWS).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{run / ROWS} cannot be read: restore it, or begin anew with resume=never."
            ) from error

    def write(self, run: Path) -> None:
        """Notes them; only the process of rank 0 writes."""
        if is_first():
            write_json(run / ROWS, asdict(self))


def run_of(output: Path, resume: str) -> Path:
    """The folder of the run that a start goes on with: its own, or that of the checkpoint which `resume` names."""
    return output if resume in RESUME else Path(resume).parent


def check_rows(checkpoint: Path, then: RowsNote | None, now: RowsNote) -> None:
    """Refuses to go on over other rows: what was measured before and what is trained on would not belong together.

    Raises:
        UserError: the rows have another content or order.
    """
    if then is not None and then.digest != now.digest:
        raise UserError(
            f"{checkpoint} was trained on other rows than data names now: their content, order or number has changed. "
            "Restore them, or name another output folder."
        )


def check_continuation(checkpoint: Path, now: StepShape) -> None:
    """Refuses to go on where the trajectory would change or a library could not read the optimizer's state.

    Raises:
        UserError: another number of prompts a step, another kind of wrapper, or another number of processes
            under DeepSpeed, whose optimizer state is cut to the number of processes that wrote it.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    saved = state.get("stateful_callbacks", {}).get(StepShape.__name__)
    if saved is None:  # written before this was kept
        return
    then = StepShape(**saved["args"])
    if then.prompts_per_step != now.prompts_per_step:
        raise UserError(
            f"{checkpoint} was made with {then.prompts_per_step} prompts a step, this start has "
            f"{now.prompts_per_step}: set trainer.per_device_train_batch_size or gradient_accumulation_steps so "
            "that their product with the number of data-parallel groups is the same."
        )
    if _family(then.wrapper) != _family(now.wrapper):
        raise UserError(
            f"{checkpoint} holds the optimizer state of {then.wrapper}, which {now.wrapper} cannot read: go on "
            "with the launch configuration that the run began with."
        )
    if now.wrapper == "DeepSpeed" and then.processes != now.processes:
        raise UserError(
            f"{checkpoint} holds DeepSpeed's optimizer state cut for {then.processes} processes, and this start "
            f"has {now.processes}: start {then.processes} (parallel.degree may differ), or begin a new run with "
            f"model.path={checkpoint} and another output."
        )


def say_goes_on(checkpoint: Path) -> None:
    """Says from which checkpoint and step a run goes on; only the process of rank 0 does."""
    if is_first():
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        tell(f"The run goes on from {checkpoint}, at step {state['global_step']} of {state['max_steps']}.")


def _family(wrapper: str) -> str:
    """DDP and no wrapper keep the optimizer's state alike."""
    return "plain" if wrapper in ("none", "DDP") else wrapper
