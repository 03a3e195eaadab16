"""Suites at every evaluation of a training run, asked of the policy as it is, before its first step and after its last.

`align train +suite@suites.NAME=SUITE` runs a suite under a name of one's own. Its scores join the held-out metrics as
`eval_NAME/SCORE`, so that results, pictures, sweeps and `align report` treat them as any other; samples, intervals and
pictures lie in `OUTPUT/suites/NAME/step-N/`. Several processes share the prompts.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from align.core.errors import UserError
from align.core.files import write_atomically
from align.distributed.wrappers import expected_wrapper
from align.evaluation.intervals import Interval, Score
from align.evaluation.suite import Evaluation, ScoredPairs, Suite, write_result
from align.generation.local import LocalSettings
from align.generation.stage import Workspace
from align.models.identity import parameters_digest
from align.models.structure import attention_of, find_causal_lm, library_attention
from align.models.text_part import current_attention
from align.patterns.layers import evaluating_patterns
from align.training.named_metrics import full_name

if TYPE_CHECKING:
    from align.data.dataset import PreferenceData
    from align.training.trainer import PreferenceTrainer

FOLDER = "suites"  # in the output folder
WEIGHTS = "weights.txt"  # beside the answers of a step: what tells the weights that gave them


class SuitesInTraining(TrainerCallback):
    """Runs suites on the policy and adds their scores to the held-out metrics.

    Args:
        suites: by the name that their scores and folders have.
        trainer: whose policy answers.
        tokenizer: with a chat template.
        output: the run's folder.
        seed: of prompts, draws and intervals.
        read_pairs: tokenised preference rows of another path.
        window: as in `Evaluation`.
        greater_is_better: of the score that `trainer.metric_for_best_model` names; None: as its suite says.
        console: one line a suite goes there.
    """

    def __init__(
        self,
        suites: Mapping[str, Suite],
        trainer: PreferenceTrainer,
        *,
        tokenizer: PreTrainedTokenizerBase,
        output: Path,
        seed: int,
        read_pairs: Callable[[str], PreferenceData],
        greater_is_better: bool | None = None,
        window: Callable[[], int | None] = lambda: None,
        console: Console | None = None,
    ) -> None:
        self.suites = dict(suites)
        self.trainer = trainer
        self.tokenizer = tokenizer
        self.folder = output / FOLDER
        self.seed = seed
        self.read_pairs = read_pairs
        self.greater_is_better = greater_is_better
        self.window = window
        assert trainer.model is not None
        self.policy: nn.Module = trainer.model
        self.attention: str = current_attention(find_causal_lm(self.policy))
        self.console = console or Console(stderr=True, quiet=not trainer.is_world_process_zero())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run from the first step on removes an earlier run's answers: they are of other weights."""
        if state.global_step == 0 and state.is_world_process_zero and self.folder.is_dir():
            shutil.rmtree(self.folder)
        PartialState().wait_for_everyone()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Asks and scores; `metrics`, which the Trainer hands on, gains `eval_NAME/SCORE`."""
        scores = {
            f"eval_{name}/{score}": interval
            for name, suite in self.suites.items()
            for score, interval in self._run(name, suite, step=state.global_step).items()
        }
        if self.greater_is_better is None:
            set_direction(args, scores)
        found = {name: interval.mean for name, interval in scores.items()}
        if metrics is not None:
            metrics.update(found)
        self.trainer.log(found)

    def _run(self, name: str, suite: Suite, *, step: int) -> Mapping[str, Interval]:
        folder = self.folder / name / f"step-{step}"
        with evaluating_patterns(), answering(self.policy) as model:
            weights = parameters_digest(model)
            self._forget_others(folder, weights)
            generator = LocalSettings().of_model(model, self.tokenizer)
            workspace = Workspace(folder, self.seed, self.tokenizer, generator, self.console)
            given = Evaluation(lambda: model, workspace, self._score_pairs, lambda: weights, self.window)
            result = suite.run(given)
        if PartialState().is_main_process:
            write_result(result, folder)
        line = "  ".join(f"{score} {interval.mean:.3f}" for score, interval in result.scores.items())
        for said in (f"{name} at step {step}: {line}", *(f"{name}: {note}" for note in result.notes)):
            self.console.print(said, soft_wrap=True, highlight=False, markup=False)
        return result.scores

    def _forget_others(self, folder: Path, weights: str) -> None:
        """Removes answers of other weights at this step, as a run leaves them that has gone back to a checkpoint."""
        if PartialState().is_main_process:
            note = folder / WEIGHTS
            if folder.is_dir() and not (note.is_file() and note.read_text() == weights):
                self.console.print(
                    f"{folder} holds answers of other weights: asked again.",
                    soft_wrap=True,
                    highlight=False,
                    markup=False,
                )
                shutil.rmtree(folder)
            write_atomically(note, weights)
        PartialState().wait_for_everyone()

    def _score_pairs(self, path: str | None) -> ScoredPairs:
        """The rows of `path`, or those that the run holds out, on the training forward."""
        rows: Any = self.trainer.eval_dataset if path is None else self.read_pairs(path).train
        with attention_of(find_causal_lm(self.policy), self.attention):
            found = self.trainer.predict(rows)
        columns = rows.select_columns(["source", "longest_sequence"])
        return ScoredPairs(np.asarray(found.predictions), [dict(row) for row in columns])


def set_direction(args: TrainingArguments, scores: Mapping[str, Interval]) -> None:
    """Sets `greater_is_better` by what the suite says of the score that `metric_for_best_model` names, if it is one.

    transformers takes the highest value of all that is not called a loss.

    Raises:
        UserError: neither high nor low values of the score are the better ones.
    """
    name = full_name(args.metric_for_best_model or "")
    if name not in scores:
        return
    score = scores[name]
    better = score.better if isinstance(score, Score) else None
    if better is None:
        raise UserError(
            f"trainer.metric_for_best_model={name}: its suite does not say whether high or low values are better: set "
            "trainer.greater_is_better."
        )
    args.greater_is_better = better == "higher"


@contextmanager
def answering(policy: nn.Module) -> Iterator[PreTrainedModel]:
    """The language model within `policy`, ready to generate; afterwards policy and random numbers are as before."""
    model = find_causal_lm(policy)
    training, settings = policy.training, model.generation_config
    python, numpy = random.getstate(), np.random.get_state()
    policy.eval()
    try:
        # The shared-prefix attention has no key-value cache.
        with torch.random.fork_rng(), attention_of(model, library_attention(model)):
            yield model
    finally:
        policy.train(training)
        model.generation_config = settings
        random.setstate(python)
        np.random.set_state(numpy)


def check_suites(suites: Mapping[str, Suite], args: TrainingArguments) -> None:
    """Refuses suites where no process has the whole policy to answer with.

    Args:
        suites: what the run is to ask.
        args: the trainer's arguments, with the wrapper they ask for.

    Raises:
        UserError: FSDP or ZeRO-3, which spread parameters over processes that each ask something else.
    """
    for name, suite in suites.items():
        memory = getattr(suite, "memory", None)
        if memory is not None and memory.chunk:
            raise UserError(
                f"suites.{name}.memory puts an adapter on the model, which trains meanwhile: leave it out and run "
                "`align evaluate` on the checkpoint afterwards."
            )
    sharded = is_deepspeed_zero3_enabled() or os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    if suites and (expected_wrapper(args) == "FSDP" or sharded):
        raise UserError(
            f"suites.{next(iter(suites))}: under FSDP and ZeRO-3 no process has the whole policy to answer with. "
            "Leave suites out and run `align evaluate model.path=CHECKPOINT` afterwards, or train with DDP or ZeRO-2."
        )
