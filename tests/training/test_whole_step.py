"""Losses over the whole step: the same trajectory however a step's prompts are spread, and state that goes on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.core.errors import UserError
from align.data.examples import TokenizedExample
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.parallel import start_parallel
from align.reference.sources import Frozen
from align.training.methods import Method, named_method
from align.training.metrics import mean_metrics, prompt_metrics
from align.training.whole_step import Scored, step_losses
from losses import LossOutput, PairLogps
from tests.distributed import run_distributed
from tests.longseq.plain import assert_close
from tests.tiny import tiny_model
from tests.training.helpers import make_trainer, weights

NAMES = ["aot", "aot_unpaired", "bco", "dr_dpo", "kto", "mpo"]
SETTINGS = {"mpo": {"weights": {"dpo": 0.8, "bco": 5.0, "sft": 1.0}}}  # a β of its own for each of its losses
CLOSE = {"rel": 1e-4, "abs": 1e-5}


def other_model() -> Any:
    """A reference's weights."""
    model = tiny_model(seed=3, initializer_range=0.1)
    model.set_attn_implementation(ATTENTION)
    return model


def collator(method: Method) -> Any:
    """Packs rows whose own answer is good or bad as its prompt's first token falls out; the second is no one's own."""
    other = -1.0 if method.needs.answers == "unrelated" else 0.0

    def labelled(row: TokenizedExample) -> TokenizedExample:
        return replace(row, columns=np.array([[float(row.prompt_ids[0] % 2), other, 0.0]]))

    return lambda rows: {"batch": pack([labelled(row) if method.needs.columns else row for row in rows])}


def trained(
    folder: Path, name: str, parallel: Any = None, resume: str | None = None, **arguments: Any
) -> tuple[Any, dict[str, float]]:
    """A trainer after three steps of four prompts, of which the last has three, and its held-out numbers before."""
    method = named_method(name, **SETTINGS.get(name, {"beta": 0.5}))
    trainer = make_trainer(
        folder,
        method=method,
        collator=collator(method),
        reference=Frozen(other_model, partial(pair_logps, parallel=parallel)),
        rows=11,
        parallel=parallel,
        **{"max_steps": -1, "num_train_epochs": 1} | arguments,
    )
    held_out = trainer.evaluate()
    trainer.train(resume_from_checkpoint=resume)
    return trainer, held_out


@pytest.mark.parametrize("name", NAMES)
def test_accumulation_does_not_change_the_trajectory(name: str, tmp_path: Path) -> None:
    """One micro-batch of four prompts, two of two, four of one; the logged losses too."""
    whole, held_out = trained(tmp_path, name)
    for size in (2, 1):
        spread, again = trained(
            tmp_path,
            name,
            per_device_train_batch_size=size,
            per_device_eval_batch_size=size,
            gradient_accumulation_steps=4 // size,
        )
        assert_close(weights(spread), weights(whole), tolerance=1e-5)
        for metric in ("eval_loss", "eval_rewards/margins"):
            assert again[metric] == pytest.approx(held_out[metric], **CLOSE), metric
        for one, other in zip(spread.state.log_history, whole.state.log_history, strict=True):
            if "loss" in one:
                assert one["loss"] == pytest.approx(other["loss"], **CLOSE)


def of_four(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Each method on two groups of two processes: weights and held-out numbers."""
    parallel = start_parallel("ulysses", 2)
    found = {}
    for name in NAMES:
        trainer, held_out = trained(
            folder / f"{name}{rank}",
            name,
            parallel,
            per_device_train_batch_size=1,
            per_device_eval_batch_size=1,
            gradient_accumulation_steps=2,
        )
        states = {key: value.state_dict() for key, value in trainer.method.states().items()}
        found[name] = weights(trainer), held_out, states
    return found


def test_groups_and_degree_do_not_change_the_trajectory(tmp_path: Path) -> None:
    """Two groups of two with an accumulation of two end with the weights of one process, and with one state."""
    everyone = run_distributed(of_four, 4, tmp_path)
    for name in NAMES:
        alone, held_out = trained(tmp_path / name, name)
        for found in everyone:
            assert_close(found[name][0], weights(alone), tolerance=1e-5)
            for metric in ("eval_loss", "eval_rewards/margins"):
                assert found[name][1][metric] == pytest.approx(held_out[metric], **CLOSE), metric
            assert found[name][2] == everyone[0][name][2], "every process has the same state, to the bit"


def test_a_resumed_run_goes_on_with_the_same_mean(tmp_path: Path) -> None:
    """BCO's δ after step 2 of 3 is in the checkpoint: the same weights and the same δ, to the bit."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    unbroken, _ = trained(tmp_path, "bco", **saving)
    resumed, _ = trained(tmp_path, "bco", resume=str(tmp_path / "checkpoint-2"))
    for name, value in weights(unbroken).items():
        assert torch.equal(value, weights(resumed)[name]), name
    states = [trainer.method.states()["shift"].state_dict() for trainer in (unbroken, resumed)]
    assert states[0] == states[1]
    assert sum(count for _, count in states[0]["totals"]) == 33, "three answers of each of 11 rows"
    (tmp_path / "checkpoint-2" / "loss_state.json").unlink()
    with pytest.raises(UserError, match=r"loss_state\.json, what the loss has learnt .* resume=never"):
        trained(tmp_path, "bco", resume=str(tmp_path / "checkpoint-2"))


def test_a_step_of_one_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a step has one: raise args\.per_device_train_batch_size"):
        trained(tmp_path, "aot", per_device_train_batch_size=1)


def test_single_answers_have_the_margin_of_their_means() -> None:
    """Good ones of the rewards 1 and 3, a bad one of −1: as TRL's KTO logs them, 2 + 1."""
    policy = PairLogps(*(torch.zeros(3), torch.zeros(3, 0), torch.ones(3), torch.zeros(3, 0)))
    policy = replace(policy, columns={"label": torch.tensor([[1.0], [0.0], [1.0]])})
    output = LossOutput(torch.zeros(3), torch.tensor([1.0, -1.0, 3.0]), torch.zeros(3, 0))
    found = mean_metrics(prompt_metrics(policy, output), torch.ones(3), prefix="eval")
    assert found["eval_rewards/chosen"] == 2 and found["eval_rewards/rejected"] == -1
    assert found["eval_rewards/margins"] == 3 and "eval_rewards/accuracies" not in found


def test_a_loss_that_is_not_finite_is_that_prompts_alone() -> None:
    """Of two micro-batches of APO-zero's, called over the step, the second has the bad prompt: it alone is named."""
    method = replace(named_method("apo_zero_unpaired"), needs=named_method("kto").needs)
    step = step_losses(method, 1, 0, lambda table: table)
    parts = [scored([-1.0, -2.0]), scored([-3.0, float("nan")])]
    rest = iter(parts)
    step.begin([{}, {}], lambda batch: next(rest))
    losses = torch.cat([step.output(part).loss for part in parts])
    assert losses.isfinite().tolist() == [True, True, True, False]


def scored(chosen: list[float]) -> Scored:
    """Prompts with one answer each, good ones."""
    count = len(chosen)
    empty = torch.zeros(count, 0)
    policy = PairLogps(torch.tensor(chosen, requires_grad=True), empty, torch.ones(count), empty)
    reference = PairLogps(torch.zeros(count), empty, torch.ones(count), empty)
    return Scored(policy, reference, [True] * count)
