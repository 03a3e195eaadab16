"""One cell: an arm trained on the new task, both tasks asked on the way."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

import align
from align.adapters.adapter import add_adapter
from align.training.trainer import PreferenceTrainer
from benchmarks.forgetting.arms import SETTINGS, adapter_of
from benchmarks.forgetting.tasks import Question, held_out, rows
from benchmarks.miniature import tiny

STEPS, BATCH, EVERY = 200, 16, 10
GAIN = 0.8  # share of the new task's questions, at which arms are compared
WEIGHTS = tuple(step / 20 for step in range(1, 21))  # of the trained model in an interpolation
TASKS = ("old", "new")
Right = dict[str, list[bool]]  # task → of each held-out question, whether it is answered right


@cache
def base(seed: int) -> PreTrainedModel:
    """The model that has learnt the old task."""
    steps, batch, learning_rate = tiny.TRAINING["find"]
    return tiny.train("find", seed, steps=steps, batch=batch, learning_rate=learning_rate)


@cache
def questions(task: str) -> tuple[Question, ...]:
    """Those that are held out."""
    return tuple(held_out(task))


def answers(model: Any) -> Right:
    """The old task's questions by the most likely next token, the new one's by the right word against the wrong one."""
    ids = {word: i for i, word in enumerate(tiny.vocabulary())}
    found: Right = {}
    for task in TASKS:
        prompts = torch.tensor([[ids[word] for word in each.tokens] for each in questions(task)])
        right = torch.tensor([[ids[each.right]] for each in questions(task)])
        wrong = torch.tensor([[ids[each.wrong]] for each in questions(task)])
        with torch.no_grad():
            logits = model(input_ids=prompts).logits[:, -1]
        least = logits.gather(1, wrong)[:, 0] if task == "new" else logits.scatter(1, right, -1e9).amax(1)
        found[task] = (logits.gather(1, right)[:, 0] > least).tolist()
    return found


def share(right: Sequence[bool]) -> float:
    """Of the questions, those that are answered right."""
    return sum(right) / len(right)


@dataclass
class Asking(TrainerCallback):
    """Asks every `EVERY` steps, of a copy with the library's attention; keeps the first answers with the gain."""

    reading: PreTrainedModel
    ends: bool
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    reached: Right | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks where it is time, and ends the run where it is enough."""
        if state.global_step % EVERY:
            return
        found = answers(self.read(kwargs["model"]))
        self.curve.append((state.global_step, share(found["old"]), share(found["new"])))
        if self.reached is None and share(found["new"]) >= GAIN:
            self.reached = found
            control.should_training_stop = self.ends

    def read(self, policy: Any) -> PreTrainedModel:
        """The policy's weights, merged, in a model that reads plain rows."""
        merged = copy.deepcopy(policy)
        merged = merged.merge_and_unload() if hasattr(merged, "merge_and_unload") else merged
        self.reading.load_state_dict(merged.state_dict())
        return self.reading.eval()


def run(setting: str, arm: str, seed: int, *, rate: float) -> dict[str, Any]:
    """The arm's curve and its answers at equal gain; of `full` also those of its interpolation."""
    start = base(seed)
    name, keywords = SETTINGS[setting]
    torch.manual_seed(seed)
    policy = add_adapter(copy.deepcopy(start), adapter_of(arm))
    asking = Asking(copy.deepcopy(start), ends=arm != "full")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=rate,
            lr_scheduler_type="constant",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            seed=seed,
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = PreferenceTrainer(
            policy,
            arguments,
            method=align.method(name, **keywords),
            train_dataset=list(rows(seed)),
            processing_class=tiny.tokenizer(),
            callbacks=[asking],
        )
        trainer.train()
    trained = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
    found = {
        "trained": trained,
        "rate": rate,
        "start": {task: share(right) for task, right in answers(copy.deepcopy(start)).items()},
        "curve": asking.curve,
        "reached": asking.reached,
    }
    if arm == "full":
        found["interpolated"] = interpolated(start, asking.read(policy))
    return found


def interpolated(start: PreTrainedModel, trained: PreTrainedModel) -> dict[str, Any]:
    """The smallest weight of the trained model with the gain, and the answers there."""
    first, last = start.state_dict(), trained.state_dict()
    model, curve = copy.deepcopy(start), []
    for weight in WEIGHTS:
        model.load_state_dict({name: torch.lerp(first[name], last[name], weight) for name in first})
        found = answers(model)
        curve.append((weight, share(found["old"]), share(found["new"])))
        if share(found["new"]) >= GAIN:
            return {"weight": weight, "curve": curve, "reached": found}
    return {"weight": None, "curve": curve, "reached": None}


def steps_to_gain(found: Mapping[str, Any]) -> float:
    """Steps until the gain; infinite where it was not reached."""
    return next((float(step) for step, _, new in found["curve"] if new >= GAIN), float("inf"))
