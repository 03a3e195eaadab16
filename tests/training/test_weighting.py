"""`needs.weighting: token`: the loss of a step is the mean over its answer tokens, however the step is cut."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from align.core.errors import UserError
from align.longseq import pack, pair_logps
from align.training.method_settings import Needs
from align.training.methods import Method
from align.training.metric_names import METRICS
from align.training.metrics import MeanMeter, mean_metrics, means
from align.training.weighting import prompt_weights
from losses import sft_loss
from tests.distributed import run_distributed
from tests.longseq.plain import assert_close
from tests.training.helpers import Rows, make_trainer, weights

TOKENS = Method("longwriter_sft", sft_loss, Needs("none", False, "none", weighting="token"))
PROMPTS = Method("sft", sft_loss, Needs("none", False, "none"))
# Seven rows in steps of four: the second step is ragged.
ROWS = {"method": TOKENS, "rows": 7, "max_steps": -1, "num_train_epochs": 2}
COMPARED = ("loss", "grad_norm", "num_tokens", "eval_loss")


def test_weights_are_the_chosen_answers_scored_tokens():
    """A placeholder weighs nothing; rejected answers and prompts have no say."""
    examples = Rows(3).examples
    real = torch.tensor([True, False, True])
    lengths = [len(example.answers[0].input_ids) for example in examples]
    for tokens_per_row in (None, 1):
        inputs = {"batch": pack(examples, tokens_per_row=tokens_per_row), "real": real}
        assert prompt_weights(inputs, "token").tolist() == [lengths[0], 0, lengths[2]]
        assert prompt_weights(inputs, "prompt").tolist() == [1, 0, 1]


def test_a_step_is_the_mean_over_tokens(tmp_path):
    """One step and one evaluation: Σ log-probs / Σ tokens of all chosen answers, not the mean of their means."""
    trainer = make_trainer(tmp_path, method=TOKENS, max_steps=1, per_device_train_batch_size=8)
    with torch.no_grad():
        train = pair_logps(trainer.model, pack(Rows(8).examples))
        held_out = pair_logps(trainer.model, pack(Rows(5, seed=1).examples))
    expected = -held_out.chosen.sum() / held_out.chosen_length.sum()
    unweighted = -(held_out.chosen / held_out.chosen_length).mean()
    assert abs(expected - unweighted) > 1e-3
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)
    trainer.train()
    expected = -train.chosen.sum() / train.chosen_length.sum()
    assert trainer.state.log_history[-2]["loss"] == pytest.approx(expected.item(), rel=1e-6)


def run(trainer) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights and what was logged, the last evaluation included."""
    trainer.train()
    trainer.evaluate()
    logs = [{name: log[name] for name in COMPARED if name in log} for log in trainer.state.log_history]
    return weights(trainer), [log for log in logs if log]


def assert_same_run(one, other) -> None:
    assert_close(one[0], other[0], tolerance=1e-6)
    for log, expected in zip(one[1], other[1], strict=True):
        assert log == pytest.approx(expected, rel=1e-5)


def test_packing_batch_and_accumulation_give_one_trajectory(tmp_path):
    """Clipped SGD over two epochs: batches of 4, 2 × 2 and 1 × 4, packed in one row or several."""
    plain = run(make_trainer(tmp_path, **ROWS))
    for batch, accumulation, tokens_per_row in ((4, 1, 40), (2, 2, None), (1, 4, None)):
        cut = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        assert_same_run(run(make_trainer(tmp_path, tokens_per_row=tokens_per_row, **ROWS, **cut)), plain)


@pytest.mark.parametrize("tokens_per_row", [None, 1, 40, 90])
def test_packing_drops_nothing(tmp_path, tokens_per_row):
    """Every token of every row, in order, in exactly one pack; the last, partial one is trained on like the others."""
    examples = Rows(7).examples
    packed = pack(examples, tokens_per_row=tokens_per_row)
    read = [token for row in packed.rows for token in row.input_ids[0].tolist()]
    expected = [
        part.tolist() for row in examples for part in (row.prompt_ids, *(a.input_ids for a in row.answers))
    ]
    assert read == [token for part in expected for token in part]
    assert len(packed) == 7
    trainer = make_trainer(tmp_path, tokens_per_row=tokens_per_row, **(ROWS | {"num_train_epochs": 1}))
    trainer.train()
    assert trainer.state.log_history[-2]["num_tokens"] == len(read)
    assert trainer.state.global_step == 2


def test_the_two_weightings_differ(tmp_path):
    one, other = (run(make_trainer(tmp_path, **(ROWS | {"method": kind}))) for kind in (TOKENS, PROMPTS))
    with pytest.raises(AssertionError):
        assert_close(one[0], other[0], tolerance=1e-4)


def on_two_processes(rank: int, size: int, folder) -> tuple[dict, list]:
    return run(make_trainer(folder, **ROWS, per_device_train_batch_size=1, gradient_accumulation_steps=2))


def test_two_data_parallel_processes_are_one(tmp_path):
    """Each reads other rows with other numbers of tokens; a placeholder fills the ragged end."""
    first, second = run_distributed(on_two_processes, 2, tmp_path)
    renamed = {name.removeprefix("module."): value for name, value in first[0].items()}
    assert_same_run((renamed, first[1]), run(make_trainer(tmp_path, **ROWS)))
    assert first[1] == second[1]


def test_only_the_loss_is_weighted():
    """Losses 1 and 4 with weights 3 and 1: (3 + 4) / 4; all other columns count each prompt once; NaN is left out."""
    rows = torch.full((2, len(METRICS)), 2.0, dtype=torch.float64)
    rows[:, METRICS.index("loss")] = torch.tensor([1.0, 4.0])
    rows[:, METRICS.index("logps/chosen")] = torch.tensor([-1.0, -5.0])
    rows[1, METRICS.index("rewards/margins")] = float("nan")
    meter = MeanMeter()
    meter.add(rows, torch.tensor([3, 1]))
    sums = meter.pop()
    assert sums is not None
    named = means(sums)
    assert (named["loss"], named["logps/chosen"], named["rewards/margins"]) == (1.75, -3.0, 2.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_prompt_does_not_improve_the_mean(value):
    """Its loss and its comparisons are values, not absent ones: no mean that it is part of is a number."""
    rows = torch.full((2, len(METRICS)), 0.5, dtype=torch.float64)
    rows[1] = float("nan")
    rows[1, METRICS.index("loss")] = value
    named = mean_metrics(rows, torch.ones(2), prefix="eval")
    assert len(named) == len(METRICS)
    assert not any(math.isfinite(mean) for mean in named.values())


def test_unknown_weighting_is_refused():
    with pytest.raises(UserError, match=r"method\.needs\.weighting=row .* prompt, token, sequence"):
        Needs("none", False, "none", weighting="row")
    with pytest.raises(UserError, match=r"weighting=sequence .*set method\.needs\.nll_scope=sequence"):
        Needs("none", False, "chosen", weighting="sequence")


def test_long_sums_keep_fp32_precision():
    """12,000 tokens of about −3 nats: the sum and its gradient against fp64, to 1e-6 relative.

    A sum carried in bfloat16 would stop growing after some hundred tokens.
    """
    from align.longseq.logps import sum_by_index, token_logps

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(12_000, 8, generator=generator)
    weight = torch.randn(50, 8, generator=generator)
    target = torch.randint(50, (12_000,), generator=generator)

    def total(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        head = weight.to(dtype).requires_grad_()
        logps = token_logps(
            partial(torch.nn.functional.linear, weight=head), hidden.to(dtype), target, slices=12
        )
        summed = sum_by_index(logps, torch.zeros_like(target), 1)
        (gradient,) = torch.autograd.grad(summed, head)
        return summed.detach(), gradient

    exact, exact_gradient = total(torch.float64)
    single, single_gradient = total(torch.float32)
    assert exact.item() < -30_000
    assert abs(single.item() / exact.item() - 1) < 1e-6
    assert ((single_gradient - exact_gradient).norm() / exact_gradient.norm()).item() < 1e-6
    half, _ = total(torch.bfloat16)  # logits rounded to bfloat16, sums in fp64
    assert abs(half.item() / exact.item() - 1) < 1e-2
