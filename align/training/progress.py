"""What a person sees while training runs: one live line on a terminal, a line a log elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.core.display import progress_bar

# Metric → how it is shown; those that are absent are left out.
SHOWN = {
    "loss": "loss {:.4f}",
    "rewards/accuracies": "accuracy {:.0%}",
    "rewards/margins": "margin {:.3f}",
    "learning_rate": "lr {:.1e}",
    "tokens_per_second": "{:.0f} tokens/s",
    "memory/peak_gb": "peak {:.1f} GB",
}


def describe(logs: dict[str, Any]) -> str:
    """The shown metrics of one log, in order, on one line."""
    return "  ".join(text.format(logs[name]) for name, text in SHOWN.items() if name in logs)


class ProgressDisplay(TrainerCallback):
    """A bar over optimizer steps with the latest metrics; only the first process shows anything."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._task: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the bar at the step that training goes on from."""
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        self._progress = progress_bar(self.console, TextColumn("{task.fields[metrics]}"))
        self._task = self._progress.add_task(
            "training", total=state.max_steps, completed=state.global_step, metrics=""
        )
        self._progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Moves the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the latest training metrics."""
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        if self._progress is not None:
            self._progress.update(self._task, metrics=describe(logs))
        else:
            self._say(f"step {state.global_step}/{state.max_steps}  {describe(logs)}")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Prints held-out metrics above the bar."""
        if state.is_world_process_zero and metrics is not None:
            shown = describe({name.removeprefix("eval_"): value for name, value in metrics.items()})
            self._say(f"held-out at step {state.global_step}:  {shown}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Gives the terminal back, also where training ended in its middle."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _say(self, line: str) -> None:
        """Prints one line as it is, however narrow the console is."""
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)
