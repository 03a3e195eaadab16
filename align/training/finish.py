"""What a run measures before its first step, and what it leaves at its end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.core.errors import UserError
from align.core.files import jsonable, write_json
from align.core.readable import Readable, counted
from align.core.telling import tell
from align.data.dataset import PreferenceData
from align.models.processor_files import copy_processor
from align.runs import checkpoints
from align.runs.objective import resolved
from align.training import results
from align.training.progress import ProgressDisplay
from align.training.run import Run
from align.training.trainer import PreferenceTrainer

# In the output folder: held-out metrics of the untrained policy, all figures of the run, and the trained weights.
BEFORE, RESULTS, MODEL = "before.json", "results.json", "model"


class MetricsBefore(TrainerCallback):
    """Keeps the held-out metrics of the untrained policy, for the table; a resumed run finds them there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes them where no step has been made; a run begun anew writes over an earlier one's."""
        if state.is_world_process_zero and state.global_step == 0:
            write_json(self.path, kwargs["metrics"])


@dataclass(frozen=True)
class TrainResult(Readable):
    """What a training run has left in its folder.

    Attributes:
        output: the folder.
        model: folder of the trained weights or of the adapter; None where the run was stopped, or filled a cache.
        before, after: held-out metrics (`eval_…`) before the first step and after the last; empty without such rows.
        training: what it cost: seconds, tokens, peak memory.
        data: counts of its rows.
        objective: the metric that a sweeper optimises; None where no rows are held out.
        stopped: whether SIGTERM ended it; the same call goes on.
    """

    output: Path
    model: Path | None = None
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    training: dict[str, float] = field(default_factory=dict)
    data: dict[str, int] = field(default_factory=dict)
    objective: float | None = None
    stopped: bool = False


def say_stopped(trainer: PreferenceTrainer) -> None:
    """Says where a run that SIGTERM ended goes on from."""
    if trainer.is_world_process_zero():
        tell(
            f"stopped by SIGTERM; step {trainer.state.global_step} is saved, and the same command goes on from it"
        )


def is_finished(output: Path) -> bool:
    """Whether the run in a folder has ended: its policy is saved and its results are written."""
    return (output / RESULTS).is_file() and (output / MODEL).is_dir()


def reopen(run: Run) -> None:
    """Takes the results of a finished run away that goes on from one of its checkpoints: it is finished no more."""
    if run.arguments.process_index == 0:
        (run.output / RESULTS).unlink(missing_ok=True)


def say_finished(run: Run, data: PreferenceData) -> None:
    """Says that a run is over, and shows its results once more."""
    if run.arguments.process_index != 0:
        return
    tell(
        f"The run in {run.output} is finished and nothing is trained: resume=never begins it anew, another output= "
        "begins another."
    )
    _show(json.loads((run.output / RESULTS).read_text()), run, data)


@contextmanager
def interruptible(trainer: PreferenceTrainer, output: Path) -> Iterator[None]:
    """Around the training: Ctrl-C says from where the same command goes on and what is lost, and ends it."""
    try:
        yield
    except KeyboardInterrupt:
        shown = trainer.pop_callback(ProgressDisplay)
        if isinstance(shown, ProgressDisplay):
            shown.close()
        if trainer.is_world_process_zero():
            tell(_what_is_lost(trainer.state.global_step, output))
        raise


def _what_is_lost(step: int, output: Path) -> str:
    """One sentence on a run that was interrupted at a step."""
    sealed = [folder for folder in checkpoints.checkpoints(output) if (folder / checkpoints.SEAL).is_file()]
    if not sealed:
        return f"Interrupted at step {step} with nothing saved: the same command begins anew."
    saved = int(sealed[-1].name.removeprefix(checkpoints.PREFIX))
    lost = counted(step - saved, "step")
    return f"Interrupted at step {step}: the same command goes on from {sealed[-1]}, losing {lost}."


def finish(trainer: PreferenceTrainer, run: Run, data: PreferenceData) -> None:
    """Saves the policy; shows and writes before/after as table, JSON and picture."""
    trainer.save_model(
        str(run.output / MODEL)
    )  # first: whatever a measurement ends with, what was trained is there
    after = {} if trainer.eval_dataset is None else trainer.evaluate()
    history = trainer.state.log_history
    if not trainer.is_world_process_zero():
        return
    copy_processor(run.model.path, run.output / MODEL, revision=run.model.revision)
    path = run.output / BEFORE
    before = json.loads(path.read_text()) if path.is_file() else {}
    costs = results.training_costs(history)
    summary = {"before": before, "after": jsonable(after), "training": costs, "data": data.counts}
    if data.ingredients:
        summary["mixture"] = {one.path: one.rows for one in data.ingredients}
        summary["mixture_tokens"] = {one.path: one.tokens for one in data.ingredients}
    write_json(run.output / RESULTS, summary)
    results.draw_training(history, before, after, run.output / "training.png")
    _show(summary, run, data)


def _show(summary: Mapping[str, Any], run: Run, data: PreferenceData) -> None:
    """The table of a run's results, and where everything lies."""
    console = Console()
    rows = 0 if data.eval is None else len(data.eval)
    console.print(results.summary_table(summary, rows=rows, kind=run.method.name))
    for label, name in (("policy", MODEL), ("results", RESULTS), ("picture", "training.png")):
        console.print(f"{label:<9} {run.output / name}", soft_wrap=True, highlight=False, markup=False)


def read_result(output: Path, *, objective: str) -> TrainResult:
    """What a finished run's `results.json` says; without one (another rank writes it), the folder alone.

    Args:
        output: the run's folder.
        objective: held-out metric that a sweeper optimises, or `auto`.

    Raises:
        UserError: no such metric was measured.
    """
    try:
        found = json.loads((output / RESULTS).read_text())
    except FileNotFoundError:
        return TrainResult(output)
    after = found["after"]
    objective = resolved(objective, after)
    if after and objective not in after:
        raise UserError(f"objective={objective} is no held-out metric: use {', '.join(sorted(after))}.")
    parts = {name: found[name] for name in ("before", "after", "training", "data")}
    value = None if not after else math.nan if after[objective] is None else float(after[objective])
    return TrainResult(output, model=output / MODEL, **parts, objective=value)
