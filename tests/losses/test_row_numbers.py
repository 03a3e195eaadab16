"""Losses that read numbers of rows: rewards of answers, margins, weights; by values derived in fp64."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from losses import (
    PairLogps,
    dpo_loss,
    mirror_descent_loss,
    row_margin_loss,
    row_weighted_loss,
    simpo_loss,
)
from losses.rewards import log_ratio_reward, mean_logp_reward
from tests.losses.cases import logps


def close(expected: float) -> object:
    return pytest.approx(expected, abs=1e-8, rel=0)


def softplus(x: float) -> float:
    """log(1 + eˣ) = −log σ(−x)."""
    return math.log1p(math.exp(x))


def having(policy: PairLogps, name: str, values: list) -> PairLogps:
    return replace(policy, columns={name: torch.tensor(values, dtype=torch.float64)})


# ---- mirror descent


def answers() -> tuple[PairLogps, PairLogps]:
    """Three answers, log π −10, −12, −9, log π_ref −10.5, −11, −9, rewards 1, 0, 1 of mean ⅔."""
    policy = having(logps([-10], [[-12, -9]]), "reward", [[1.0, 0.0, 1.0]])
    return policy, logps([-10.5], [[-11, -9]])


def test_mirror_descent() -> None:
    policy, reference = answers()
    output = mirror_descent_loss(policy, reference, tau=0.1)
    assert output.loss.item() == close(-0.53472222)
    chosen, rejected = torch.autograd.grad(output.loss.sum(), [policy.chosen, policy.rejected])
    assert chosen.item() == close(-0.09444444)
    assert rejected[0].tolist() == [close(0.18888889), close(-0.11111111)]
    assert output.chosen_reward.item() == close(0.05)
    assert output.rejected_reward[0].tolist() == [close(-0.1), 0.0]


def test_mirror_descent_is_the_gradient_of_the_squares() -> None:
    """Σ (r − r̄ − τ·log(π/π_ref))² / k is 0.17083333, whose gradient is 2τ times the loss's."""
    policy, reference = answers()
    own = torch.cat([policy.chosen[:, None], policy.rejected], dim=1)
    other = torch.cat([reference.chosen[:, None], reference.rejected], dim=1)
    rewards = policy.columns["reward"]
    squares = ((rewards - rewards.mean() - 0.1 * (own - other)) ** 2).mean()
    assert squares.item() == close(0.17083333)
    leaves = [policy.chosen, policy.rejected]
    expected = torch.autograd.grad(squares, leaves)
    found = torch.autograd.grad(mirror_descent_loss(policy, reference, tau=0.1).loss.sum(), leaves)
    for one, twice in zip(found, expected, strict=True):
        torch.testing.assert_close(0.2 * one, twice, rtol=0, atol=1e-12)


def test_who_is_chosen_changes_nothing_in_mirror_descent() -> None:
    policy, reference = answers()
    other = having(logps([-12], [[-10, -9]]), "reward", [[0.0, 1.0, 1.0]])
    again = mirror_descent_loss(other, logps([-11], [[-10.5, -9]]), tau=0.1)
    assert again.loss.item() == close(mirror_descent_loss(policy, reference, tau=0.1).loss.item())


def test_one_answer_alone_is_only_pulled_back() -> None:
    """τ/2 · 0.5²: its reward is the mean."""
    policy = having(logps([-10], [[]]), "reward", [[1.0]])
    assert mirror_descent_loss(policy, logps([-10.5], [[]]), tau=0.1).loss.item() == close(0.0125)


# ---- margins and weights of rows


def pair() -> tuple[PairLogps, PairLogps]:
    """Two rows of −20 against −30 over 10 tokens; the references give z = 0.1·4 and 0.1·(−1)."""
    policy = logps([-20, -20], [[-30], [-30]], chosen_length=[10, 10], rejected_length=[[10], [10]])
    return policy, logps([-22, -21], [[-28], [-32]], chosen_length=[10, 10], rejected_length=[[10], [10]])


def test_odpo() -> None:
    """z 0.4 and −0.1 less 0.1·Δ, Δ 2 and −3."""
    policy, reference = pair()
    loss = partial(row_margin_loss, reward=partial(log_ratio_reward, beta=0.1), scale=0.1)
    output = loss(having(policy, "margin", [2.0, -3.0]), reference)
    assert output.loss.tolist() == [close(softplus(-0.2)), close(softplus(-0.2))]
    assert output.chosen_reward.tolist() == [close(0.2), close(0.1)]
    plain = dpo_loss(policy, reference, beta=0.1).loss.tolist()
    assert loss(having(policy, "margin", [0.0, 0.0]), reference).loss.tolist() == [
        close(one) for one in plain
    ]


def test_simpo_with_a_margin_for_each_row() -> None:
    """The same margin in every row is SimPO's γ."""
    policy, _ = pair()
    loss = partial(row_margin_loss, reward=partial(mean_logp_reward, beta=2.0), scale=1.0)
    found = loss(having(policy, "margin", [1.5, 0.3])).loss.tolist()
    expected = [
        simpo_loss(policy, beta=2.0, gamma=gamma).loss[i].item() for i, gamma in enumerate((1.5, 0.3))
    ]
    assert found == [close(one) for one in expected]


def test_weights_of_rows() -> None:
    policy, reference = pair()
    loss = partial(dpo_loss, beta=0.1)
    output = row_weighted_loss(having(policy, "weight", [1.0, 0.5]), reference, loss=loss)
    plain = loss(policy, reference)
    assert output.loss.tolist() == [close(softplus(-0.4)), close(0.5 * softplus(0.1))]
    assert torch.equal(output.chosen_reward, plain.chosen_reward)


def test_numbers_that_are_not_declared() -> None:
    policy, reference = pair()
    losses = {
        "reward": partial(mirror_descent_loss, tau=0.1),
        "margin": partial(row_margin_loss, reward=partial(log_ratio_reward, beta=0.1), scale=1.0),
        "weight": partial(row_weighted_loss, loss=partial(dpo_loss, beta=0.1)),
    }
    for name, loss in losses.items():
        with pytest.raises(ValueError, match=rf"reads the rows' {name}, which needs\.columns has to declare"):
            loss(policy, reference)
    with pytest.raises(ValueError, match="tau must be above 0"):
        mirror_descent_loss(*answers(), tau=0.0)
