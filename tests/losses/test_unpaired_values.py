"""Values of the losses over labelled answers and over the whole step, derived by hand, in fp64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from losses import (
    PairLogps,
    RewardShift,
    aot_loss,
    aot_unpaired_loss,
    apo_zero_unpaired_loss,
    bco_loss,
    dpo_loss,
    kto_loss,
)
from tests.losses.cases import labelled, logps


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    """log(1 + eˣ) = −log σ(−x)."""
    return math.log1p(math.exp(x))


def close(expected: object) -> object:
    return pytest.approx(expected, abs=1e-8, rel=0)


def step() -> tuple[PairLogps, PairLogps]:
    """Log-ratios +2 (good) and −1 (bad), and of answers to other prompts +0.7 and −0.1: z₀ = 0.3."""
    policy = labelled(logps([-20, -31], [[-9.3], [-8.1]]), [[1, -1], [0, -1]])
    return policy, logps([-22, -30], [[-10], [-8]])


def kto(policy: PairLogps, reference: PairLogps, **weights: float) -> Tensor:
    settings = {"desirable_weight": 1.0, "undesirable_weight": 1.0} | weights
    return kto_loss(policy, reference, beta=0.5, **settings).loss


def test_kto_value() -> None:
    """1 − σ(0.5·(2 − 0.3)) and 1 − σ(0.5·(0.3 + 1)), each by its weight."""
    found = kto(*step(), desirable_weight=1.5, undesirable_weight=0.5)
    assert found.tolist() == close([1.5 * (1 - sigmoid(0.85)), 0.5 * (1 - sigmoid(0.65))])


def test_kto_gradient() -> None:
    """∓β·σ(1 − σ): z₀ has none, so that the answers to other prompts get none."""
    policy, reference = step()
    kto(policy, reference).sum().backward()
    slopes = [sigmoid(0.85) * sigmoid(-0.85), sigmoid(0.65) * sigmoid(-0.65)]
    assert policy.chosen.grad.tolist() == close([-0.5 * slopes[0], 0.5 * slopes[1]])
    assert policy.rejected.grad is None or (policy.rejected.grad == 0).all()


def test_kto_is_held_against_nothing_where_the_kl_is_negative() -> None:
    """Log-ratios of −0.7 and +0.1 have the mean −0.3, which counts as 0."""
    policy, reference = step()
    policy = replace(policy, rejected=torch.tensor([[-10.7], [-7.9]], dtype=torch.float64))
    assert kto(policy, reference).tolist() == close([1 - sigmoid(1.0), 1 - sigmoid(0.5)])
    zero = apo_zero_unpaired_loss(policy, reference, beta=0.5)
    assert zero.loss.tolist() == close([1 - sigmoid(1.0), sigmoid(-0.5)])


def test_kto_reads_a_pair_as_a_good_and_a_bad_answer() -> None:
    """Without labels, as two rows: the mean of 1 − σ(1) and 1 − σ(0.5)."""
    found = kto(logps([-20], [[-31]]), logps([-22], [[-30]]))
    assert found.tolist() == close([(1 - sigmoid(1.0) + 1 - sigmoid(0.5)) / 2])


def test_bco_value() -> None:
    """Rewards 1 and −0.5: δ = 0.25 after its step, −log σ(0.75) − log σ(0.75); a later step counts with it."""
    policy, reference, shift = logps([-20], [[-31]]), logps([-22], [[-30]]), RewardShift()
    before = bco_loss(policy, reference, beta=0.5, shift=shift)
    assert before.loss.item() == close(softplus(-1.0) + softplus(-0.5))
    shift.observe(policy, before)
    assert shift.value.item() == close(0.25)
    assert bco_loss(policy, reference, beta=0.5, shift=shift).loss.item() == close(2 * softplus(-0.75))
    again, base = logps([-20], [[-31]]), logps([-20], [[-33]])  # rewards 0 and 1: means 0.5 and 0.25
    shift.observe(again, bco_loss(again, base, beta=0.5, shift=shift))
    assert shift.value.item() == close(0.375)


def test_bco_of_labelled_answers() -> None:
    """One good answer of reward 1 and one bad one of −0.5, in two rows: the same δ, a term in each."""
    policy = labelled(logps([-20, -31], [[], []]), [[1], [0]])
    reference, shift = logps([-22, -30], [[], []]), RewardShift()
    shift.observe(policy, bco_loss(policy, reference, beta=0.5, shift=shift))
    assert shift.value.item() == close(0.25)
    found = bco_loss(policy, reference, beta=0.5, shift=shift).loss
    assert found.tolist() == close([softplus(-0.75), softplus(-0.75)])


def test_the_shift_counts_answers_and_kinds() -> None:
    """Good answers 0.3 and 0.1 and a bad one of −0.4: (0.2 − 0.4) / 2; of good ones alone their mean."""
    shift = RewardShift()
    good = labelled(logps([-1, -1], [[], []]), [[1], [1]])
    output = bco_loss(good, logps([-1.3, -1.1], [[], []]), beta=1.0, shift=shift)
    shift.observe(good, output)
    assert shift.value.item() == close(0.2)
    bad = labelled(logps([-1.4], [[]]), [[0]])
    shift.observe(bad, bco_loss(bad, logps([-1], [[]]), beta=1.0, shift=shift))
    assert shift.value.item() == close(-0.1)
    other = RewardShift()
    other.load_state_dict(shift.state_dict())
    assert other.value.item() == shift.value.item()


def test_aot_value() -> None:
    """Margins 5, 1, 3 and of the reference 0, 2, 1: sorted differences 1, 2, 3 at the places of 1, 3, 5."""
    policy, reference = logps([-1, -1, -1], [[-6], [-2], [-4]]), logps([-5, -5, -5], [[-5], [-7], [-6]])
    found = aot_loss(policy, reference, beta=0.5)
    assert found.loss.tolist() == close([softplus(-1.5), softplus(-0.5), softplus(-1.0)])
    smoothed = aot_loss(policy, reference, beta=0.5, label_smoothing=0.1)
    assert smoothed.loss[0].item() == close(0.9 * softplus(-1.5) + 0.1 * softplus(1.5))


def test_aot_unpaired_value() -> None:
    """Log-ratios 4, 0 of chosen and 1, −1 of rejected answers: 4 − 1 and 0 − (−1), whatever the pairs."""
    reference = logps([-5, -5], [[-5], [-5]])
    for rejected in ([[-4], [-6]], [[-6], [-4]]):
        found = aot_unpaired_loss(logps([-1, -5], rejected), reference, beta=0.5)
        assert found.loss.tolist() == close([softplus(-1.5), softplus(-0.5)])


def test_aot_of_one_pair_is_dpo() -> None:
    policy, reference = logps([-20], [[-30]]), logps([-22], [[-28]])
    expected = dpo_loss(policy, reference, beta=0.1, label_smoothing=0.2).loss
    for loss in (aot_loss, aot_unpaired_loss):
        found = loss(policy, reference, beta=0.1, label_smoothing=0.2).loss
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
