"""PoFT's values and gradients, derived by hand in fp64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from losses import PairLogps, poft_columns_loss, poft_loss
from tests.losses.cases import logps

# log p(y_w), tokens, mean log-probs of the aligned models, β, γ, and what comes of them: loss, ∂loss/∂log p(y_w).
CASES = [
    (-20.0, 10, [-1.5], 1.0, 0.0, 0.97407698, -0.06224593),
    (-20.0, 10, [-2.2], 1.0, 0.0, 0.59813887, -0.04501660),
    (-20.0, 10, [-1.5, -2.5, -0.8], 1.0, 0.0, 0.91301525, -0.05986877),
    (-45.5, 25, [-1.1, -1.9, -3.2], 2.0, 0.3, 0.37317226, -0.02491627),
    (-20.0, 10, [-8.0], 1.0, 0.0, 0.00247569, -0.00024726),
]


def close(expected: float) -> object:
    return pytest.approx(expected, abs=1e-8, rel=0)


def with_aligned(policy: PairLogps, means: list[float]) -> PairLogps:
    return replace(policy, columns={"aligned_logp": torch.tensor(means, dtype=torch.float64)})


@pytest.mark.parametrize(("logp", "length", "means", "beta", "gamma", "loss", "gradient"), CASES)
def test_columns(logp, length, means, beta, gamma, loss, gradient) -> None:
    """−log σ(β(log p / T − r̄) + γ), and its slope −σ(−…)·β / T."""
    policy = with_aligned(logps([logp], [[]], chosen_length=[length]), [sum(means) / len(means)])
    output = poft_columns_loss(policy, beta=beta, gamma=gamma)
    assert output.loss.item() == close(loss)
    assert torch.autograd.grad(output.loss.sum(), policy.chosen)[0].item() == close(gradient)
    assert output.chosen_reward.item() == close(beta * logp / length)


@pytest.mark.parametrize("case", [case for case in CASES if len(case[2]) == 1])
def test_a_reference_is_one_model_s_column(case) -> None:
    """A reference of the same tokenizer says the same as its mean log-prob in a column."""
    logp, length, means, beta, gamma, loss, gradient = case
    policy = logps([logp], [[]], chosen_length=[length])
    reference = logps([means[0] * length], [[]], chosen_length=[length])
    output = poft_loss(policy, reference, beta=beta, gamma=gamma)
    assert output.loss.item() == close(loss)
    assert torch.autograd.grad(output.loss.sum(), policy.chosen)[0].item() == close(gradient)


def test_a_batch_of_two() -> None:
    """Policy −20/10 and −45.5/25, reference −22/10 and −30/25: differences +0.2 and −0.62 nats a token."""
    policy = logps([-20, -45.5], [[], []], chosen_length=[10, 25])
    reference = logps([-22, -30], [[], []], chosen_length=[10, 25])
    output = poft_loss(policy, reference, beta=1.0, gamma=0.0)
    assert output.loss.tolist() == [close(0.59813887), close(1.05044674)]
    (gradient,) = torch.autograd.grad(output.loss.sum(), policy.chosen)
    assert gradient.tolist() == [close(-0.04501660), close(-0.02600874)]
    assert output.chosen_reward.tolist() == [close(0.2), close(-0.62)]


def test_only_the_answer_is_compared() -> None:
    """Six prompt tokens of 3 nats stay out: with them, as in the released code, it would be 1.541."""
    policy = with_aligned(logps([-4.0], [[]], chosen_length=[4]), [-0.9])
    assert poft_columns_loss(policy, beta=1.0, gamma=0.0).loss.item() == close(0.74439666)
    mixed = with_aligned(logps([-22.0], [[]], chosen_length=[10]), [-0.9])
    assert poft_columns_loss(mixed, beta=1.0, gamma=0.0).loss.item() == close(1.54100845)


def test_the_gradient_is_that_of_sft_times_tau() -> None:
    policy = with_aligned(logps([-20.0], [[]], chosen_length=[10]), [-1.5])
    (gradient,) = torch.autograd.grad(
        poft_columns_loss(policy, beta=1.0, gamma=0.0).loss.sum(), policy.chosen
    )
    tau = 1 / (1 + math.exp(-2.0 + 1.5))
    assert gradient.item() == close(-tau / 10)


def test_far_behind_stays_finite() -> None:
    """A difference of −110 nats a token, whose σ is 0 in fp32: 110, not infinity."""
    policy = PairLogps(
        torch.tensor([-1110.0], requires_grad=True),
        torch.zeros(1, 0),
        torch.tensor([10]),
        torch.zeros(1, 0),
        columns={"aligned_logp": torch.tensor([-1.0])},
    )
    assert poft_columns_loss(policy, beta=1.0, gamma=0.0).loss.item() == pytest.approx(110.0)


def test_rejected_answers_are_shown_and_take_no_part() -> None:
    policy = logps([-20], [[-30]], chosen_length=[10], rejected_length=[[10]])
    reference = logps([-22], [[-28]], chosen_length=[10], rejected_length=[[10]])
    output = poft_loss(policy, reference, beta=2.0, gamma=0.0)
    assert output.rejected_reward.tolist() == [[close(-0.4)]]
    assert torch.autograd.grad(output.loss.sum(), policy.rejected, allow_unused=True) == (None,)


def test_what_is_missing_is_said() -> None:
    policy = logps([-20], [[]], chosen_length=[10])
    with pytest.raises(ValueError, match="poft_loss compares the policy with a reference model"):
        poft_loss(policy, None, beta=1.0, gamma=0.0)
    with pytest.raises(
        ValueError, match=r"reads the rows' aligned_logp, which needs\.columns has to declare"
    ):
        poft_columns_loss(policy, beta=1.0, gamma=0.0)
    with pytest.raises(ValueError, match="beta must be above 0"):
        poft_columns_loss(with_aligned(policy, [-1.0]), beta=0.0, gamma=0.0)
