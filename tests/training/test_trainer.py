"""The trainer: one trajectory however the step is cut, metrics under TRL's names, resume to the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from align.longseq import ATTENTION, pack, pair_logps
from align.reference.sources import Frozen
from align.runs import checkpoints
from align.training.metric_names import METRICS
from align.training.metrics import MeanMeter, means, prompt_metrics
from losses import LossOutput, PairLogps
from tests.longseq.plain import assert_close, relative_error
from tests.tiny import tiny_model
from tests.training.helpers import DPO, LOGO, Rows, make_trainer, weights


@pytest.mark.parametrize(
    ("batch", "accumulation", "tokens_per_row"),
    [(2, 2, None), (1, 4, None), (4, 1, 40), (4, 1, 1), (2, 2, 30)],
)
def test_packing_batch_and_accumulation_give_one_trajectory(tmp_path, batch, accumulation, tokens_per_row):
    """Three SGD steps of four prompts, clipping active, cut in different ways: equal losses and weights."""
    plain = make_trainer(tmp_path / "plain")
    plain.train()
    other = make_trainer(
        tmp_path / "other",
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        tokens_per_row=tokens_per_row,
    )
    other.train()
    assert_close(weights(other), weights(plain), tolerance=1e-6)
    for one, two in zip(plain.state.log_history[:3], other.state.log_history[:3], strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "num_tokens"):
            # A margin is the difference of two rewards near 13, so it carries their rounding.
            assert two[name] == pytest.approx(one[name], rel=1e-5, abs=1e-5), name


def test_ragged_last_step_is_the_mean_over_its_prompts(tmp_path):
    """Six prompts in steps of four: the second step has two prompts, cut as 2 or as 1 + 1."""
    runs = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        trainer = make_trainer(
            tmp_path / str(batch),
            rows=6,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=-1,
            num_train_epochs=1,
        )
        trainer.train()
        assert trainer.state.global_step == 2
        runs.append(weights(trainer))
    assert_close(runs[1], runs[0], tolerance=1e-6)
    assert_close(runs[2], runs[0], tolerance=1e-6)


def test_gradient_equals_the_plain_mean(tmp_path):
    """One SGD step without clipping moves the weights by −lr · gradient of the mean loss over the prompts."""
    trainer = make_trainer(tmp_path, max_steps=1, max_grad_norm=0.0, per_device_train_batch_size=8)
    start = weights(trainer)
    model = tiny_model(initializer_range=0.1)
    model.set_attn_implementation(ATTENTION)
    loss = LOGO.loss(pair_logps(model, pack(Rows(8).examples)), None).loss.mean()
    loss.backward()
    trainer.train()
    for name, parameter in model.named_parameters():
        moved = (start[name] - weights(trainer)[name]) / 0.05
        # The difference of two fp32 weights keeps fewer digits than the gradient itself.
        assert relative_error(moved, parameter.grad) < 1e-3, name
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_metrics_have_trls_names(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    logged = trainer.state.log_history[0].keys()
    assert {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")} <= logged
    assert {"logps/chosen", "logps/rejected", "num_tokens", "tokens_per_second", "memory/peak_gb"} <= logged
    tokens = sum(example.num_tokens for example in trainer.train_dataset.examples)
    assert trainer.state.log_history[1]["num_tokens"] == tokens  # two steps of four are the eight rows


@pytest.mark.parametrize("drop_last", [False, True])
def test_evaluation_counts_every_prompt_once(tmp_path, drop_last):
    """Five held-out prompts in batches of two: the mean over prompts, not over batches, and none is dropped."""
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=2, dataloader_drop_last=drop_last)
    metrics = trainer.evaluate()
    examples = trainer.eval_dataset.examples
    with torch.no_grad():
        logps = pair_logps(trainer.model, pack(examples))
        expected = prompt_metrics(logps, LOGO.loss(logps, None)).mean(0)
    for name, value in zip(METRICS, expected.tolist(), strict=True):
        assert metrics[f"eval_{name}"] == pytest.approx(value, rel=1e-6)


def test_dpo_starts_at_log_two_and_its_reference_stays(tmp_path):
    """A policy equal to its reference has margin 0 and loss log 2; the reference does not train."""
    frozen = tiny_model(initializer_range=0.1)
    frozen.set_attn_implementation(ATTENTION)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    trainer = make_trainer(tmp_path, method=DPO, reference=Frozen(lambda: frozen, pair_logps))
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(np.log(2), abs=1e-6)
    trainer.train()
    assert trainer.evaluate()["eval_rewards/margins"] != 0
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path, optim):
    settings = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": optim,
        "learning_rate": 1e-3,
    }
    unbroken = make_trainer(tmp_path / "unbroken", **settings)
    unbroken.train()
    broken = make_trainer(tmp_path / "broken", **settings)
    broken.args.max_steps = 4
    broken.train()
    resumed = make_trainer(tmp_path / "broken", **settings)
    folder = checkpoints.last_good(tmp_path / "broken")
    assert folder is not None
    assert folder.name == "checkpoint-4"
    resumed.train(resume_from_checkpoint=str(folder))
    assert_close(weights(resumed), weights(unbroken), tolerance=1e-6)
    assert resumed.state.log_history[-2]["num_tokens"] == unbroken.state.log_history[-2]["num_tokens"]


def test_old_checkpoints_go_only_after_the_new_one_is_sealed(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=2)
    trainer.train()
    folders = checkpoints.checkpoints(tmp_path)
    assert [folder.name for folder in folders] == ["checkpoint-3", "checkpoint-4"]
    assert all(checkpoints.defect(folder) is None for folder in folders)


def test_absent_answers_and_rows_without_rejected_have_no_say():
    """Prompt 0 has rewards 1 against 0 and 2 (margin mean 0, accuracy ½); prompt 1 has no rejected answer."""
    logps = PairLogps(
        chosen=torch.tensor([-4.0, -6.0]),
        rejected=torch.tensor([[-8.0, -2.0], [0.0, 0.0]]),
        chosen_length=torch.tensor([2, 3]),
        rejected_length=torch.tensor([[1, 1], [0, 0]]),
    )
    output = LossOutput(
        torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]), torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    )
    meter = MeanMeter()
    meter.add(prompt_metrics(logps, output))
    sums = meter.pop()
    assert sums is not None
    named = means(sums)
    assert named["loss"] == 2.0
    assert named["rewards/margins"] == 0.0
    assert named["rewards/accuracies"] == 0.5
    assert named["logps/rejected"] == -5.0
    assert named["logps/chosen"] == -5.0
    assert meter.pop() is None
