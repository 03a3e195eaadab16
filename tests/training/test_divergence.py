"""A loss or a gradient that is not finite ends a run in a sentence, before its step."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from align.core.errors import UserError
from align.training.divergence import FiniteLosses, check_gradient_norm, listed
from losses import LossOutput
from tests.forked import run
from tests.longseq.plain import assert_close
from tests.rows import make_rows
from tests.tiny import save_tiny, tiny_model
from tests.training.helpers import LOGO, make_trainer, weights


def batch(losses, sources, real=None):
    inputs = {"real": torch.tensor([True] * len(losses) if real is None else real), "sources": sources}
    return torch.tensor(losses), inputs


def test_the_rows_of_a_step_are_named():
    """Of two micro-batches; a placeholder has no say, and what was told once is not told again."""
    watched = FiniteLosses()
    watched.watch(*batch([1.0, float("nan")], ["a:1", "a:2"]))
    watched.watch(*batch([float("inf"), float("nan")], ["a:3", "a:4"], real=[True, False]))
    with pytest.raises(
        UserError, match=r"^Step 7: the loss is not finite for a:2, a:3, so the step was not made: "
    ):
        watched.check(step=7)
    watched.check(step=8)
    watched.watch(*batch([0.5], ["a:5"]))
    watched.check(step=8)


def test_rows_without_a_name_are_counted():
    watched = FiniteLosses()
    watched.watch(torch.tensor([float("nan")]), {"real": torch.tensor([True])})
    assert watched.rows() == ["prompt 1 of a micro-batch"]
    assert listed(["a", "b", "c"], most=2) == "a, b and 1 more"


def test_a_gradient_that_is_not_finite():
    with pytest.raises(UserError, match="Step 3: the gradient's norm is inf, and is not followed"):
        check_gradient_norm(torch.tensor(float("inf")), step=3, scaled=False)
    check_gradient_norm(float("inf"), step=3, scaled=True)  # fp16's scaler leaves such a step out
    check_gradient_norm(None, step=3, scaled=False)
    check_gradient_norm(1.0, step=3, scaled=False)


def poisoned(policy, reference) -> LossOutput:
    """LOGO's loss, of which the second prompt's is NaN once weights have moved by two steps."""
    poisoned.calls += 1
    output = LOGO.loss(policy, reference)
    if poisoned.calls < 3:
        return output
    factor = torch.ones_like(output.loss)
    factor[1] = float("nan")
    return LossOutput(output.loss * factor, output.chosen_reward, output.rejected_reward)


def test_training_ends_before_the_bad_step(tmp_path):
    """The weights are those after the two good steps, and the log holds no zero in the place of the loss."""
    poisoned.calls = 0
    good = make_trainer(tmp_path / "good", max_steps=2)
    good.train()
    method = type(LOGO)(name="poisoned", loss=poisoned, needs=LOGO.needs)
    trainer = make_trainer(tmp_path / "bad", method=method, max_steps=5)
    with pytest.raises(UserError, match="Step 3: the loss is not finite for prompt 2 of a micro-batch"):
        trainer.train()
    assert_close(weights(trainer), weights(good), tolerance=0)


def test_a_gradient_alone_ends_training(tmp_path):
    """√x at 0 has the value 0 and an infinite slope."""

    def steep(policy, reference) -> LossOutput:
        zero = policy.chosen - policy.chosen.detach()
        output = LOGO.loss(policy, reference)
        return LossOutput(output.loss + zero.abs().sqrt(), output.chosen_reward, output.rejected_reward)

    trainer = make_trainer(tmp_path, method=type(LOGO)(name="steep", loss=steep, needs=LOGO.needs))
    before = weights(trainer)
    with pytest.raises(UserError, match=r"Step 1: the gradient's norm is (nan|inf)"):
        trainer.train()
    assert_close(weights(trainer), before, tolerance=0)


def test_held_out_rows_are_named(tmp_path, caplog):
    """Their means are NaN, not those of the other rows."""
    poisoned.calls = 10
    method = type(LOGO)(name="poisoned", loss=poisoned, needs=LOGO.needs)
    trainer = make_trainer(tmp_path, method=method, per_device_eval_batch_size=5)
    with caplog.at_level(logging.WARNING):
        metrics = trainer.evaluate()
    assert (
        "Held-out rows without a finite loss: prompt 2 of a micro-batch. Their means are NaN." in caplog.text
    )
    assert metrics["eval_loss"] != metrics["eval_loss"]


def test_the_command_ends_in_a_sentence(tmp_path):
    """A model whose weights hold a NaN: exit code 2, the rows named, nothing saved, no zero in the log."""
    model = tiny_model(initializer_range=0.1)
    save_tiny(tmp_path / "model")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    make_rows(tmp_path / "rows.jsonl", 6)
    output = tmp_path / "run"
    words = [f"model.path={tmp_path / 'model'}", f"data.path={tmp_path / 'rows.jsonl'}", f"output={output}"]
    assert run(["align", "train", *words, "data.eval_size=2", "trainer.gradient_accumulation_steps=2"]) == [2]
    said = (tmp_path / "run.log").read_text()
    assert "Step 1: the loss is not finite for rows.jsonl:" in said
    assert "Held-out rows without a finite loss: rows.jsonl:" in said
    assert "Traceback" not in said
    assert "loss 0.0000" not in said
    assert not (output / "model").exists()
    assert json.loads((output / "before.json").read_text())["eval_loss"] is None
