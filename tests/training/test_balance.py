"""The load-balancing loss in training: what a step adds, what the log says, and that processes change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.balance import RouterWatch, Routing
from align.longseq.parallel import start_parallel
from align.training.trainer import PreferenceTrainer
from tests.distributed import run_distributed
from tests.longseq.balanced import MIXTURES
from tests.longseq.plain import assert_close
from tests.tiny import tiny_model
from tests.training.helpers import LOGO, Rows, make_trainer, weights

COEFFICIENT = 0.5


def mixture() -> Any:
    model = tiny_model("qwen3_moe", initializer_range=0.1, **MIXTURES["qwen3_moe"])
    model.set_attn_implementation(ATTENTION)
    return model


def balanced(model: Any, arguments: TrainingArguments, **settings: Any) -> PreferenceTrainer:
    """A trainer of a mixture in the place of the model given."""
    return PreferenceTrainer(mixture(), arguments, balance=COEFFICIENT, **settings)


def run(folder: Path, **settings: Any) -> PreferenceTrainer:
    trainer = make_trainer(folder, kind=balanced, **settings)
    trainer.train()
    return trainer


def step_by_hand(sizes: list[int]) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Loss, mean balance loss and gradients of a step over eight prompts in micro-batches of `sizes`."""
    model = mixture()
    watch, start, total, mean = RouterWatch(model), 0, torch.zeros(()), 0.0
    for size in sizes:
        batch = pack(Rows(8).examples[start : start + size])
        start += size
        routing = Routing(watch.router, [True] * size, float(size), torch.device("cpu"))
        losses = LOGO.loss(pair_logps(model, batch, routing=routing), None).loss
        total = total + losses.sum() / 8 + COEFFICIENT * routing.loss * size / 8
        mean += routing.loss.item() * size / 8
    total.backward()
    return total.item(), mean, {name: weight.grad for name, weight in model.named_parameters()}


def test_a_step_adds_the_mean_over_its_micro_batches(tmp_path):
    """Of one micro-batch the eight prompts' order does not matter; the log has both losses."""
    loss, balance, gradients = step_by_hand([8])
    trainer = run(tmp_path, max_steps=1, max_grad_norm=0.0, per_device_train_batch_size=8)
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(loss, rel=1e-5)
    assert first["aux_loss"] == pytest.approx(balance, rel=1e-5)
    start = {name: value.clone() for name, value in mixture().state_dict().items()}
    moved = {name: (start[name] - weights(trainer)[name]) / 0.05 for name in gradients}
    assert_close(moved, gradients, tolerance=1e-3)
    assert not any("aux_loss" in name for name in trainer.evaluate())


def test_accumulation_weighs_each_micro_batch_by_its_prompts(tmp_path):
    """Six prompts in steps of four, two at a time: the second step has one micro-batch less."""
    found = {}
    for rows in (1, 40):
        trainer = run(
            tmp_path / str(rows),
            rows=6,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=-1,
            num_train_epochs=2,
            tokens_per_row=rows,
        )
        found[rows] = weights(trainer), [entry["aux_loss"] for entry in trainer.state.log_history[:-1]]
    assert_close(found[1][0], found[40][0], tolerance=1e-6)
    assert found[1][1] == pytest.approx(found[40][1], rel=1e-5)
    assert len(found[1][1]) == 4


def test_without_a_coefficient_nothing_is_added(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert "aux_loss" not in trainer.state.log_history[0]


def processes(rank: int, size: int, folder: Path, degree: int) -> dict[str, Any]:
    """Four prompts a step over all groups, of which an epoch's last step has two placeholders."""
    parallel = start_parallel("ulysses", degree) if degree > 1 else None
    trainer = run(folder, parallel=parallel, rows=6, per_device_train_batch_size=4 * degree // size)
    return {"weights": weights(trainer), "log": trainer.state.log_history}


@pytest.mark.parametrize(("size", "degree"), [(2, 1), (2, 2), (4, 2)])
def test_processes_train_as_one(tmp_path, size, degree):
    alone = run(tmp_path / "alone", rows=6, per_device_train_batch_size=4)
    for found in run_distributed(processes, size, tmp_path / "many", degree, timeout=200):
        assert_close(found["weights"], weights(alone), tolerance=1e-5)
        for one, two in zip(found["log"][:3], alone.state.log_history[:3], strict=True):
            for name in ("loss", "aux_loss", "grad_norm"):
                assert one[name] == pytest.approx(two[name], rel=1e-4), name
