"""Losses that read more of an answer's tokens than their sum, by values derived in fp64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from losses import (
    PairLogps,
    dpo_loss,
    full_ranking_loss,
    ld_dpo_loss,
    sft_loss,
    weighted_sft_loss,
    wpo_loss,
)
from tests.losses.cases import logps


def close(expected: float) -> object:
    return pytest.approx(expected, abs=1e-8, rel=0)


def softplus(x: float) -> float:
    """log(1 + eˣ) = −log σ(−x)."""
    return math.log1p(math.exp(x))


# ---- token weights


def weighted(nll: Sequence[float], weights: Sequence[float]) -> PairLogps:
    """An answer of tokens with these negative log-probs and weights."""
    both = torch.tensor([nll, weights], dtype=torch.float64)
    policy = logps([-sum(nll)], [[]], chosen_length=[len(nll)])
    sums = -(both[0] * both[1]).sum()[None, None]
    return replace(policy, weighted=sums.requires_grad_(), weight=both[1].sum()[None, None])


def test_tl_training() -> None:
    """Tokens 0 and 2 are key tokens: 5 others (neither keys nor the parameter's token 5) over 2, so w = 2.5."""
    nll = [2, 1, 0.5, 0.25, 0.25, 3, 0.1, 0.4]
    policy = weighted(nll, [2.5 if i in (0, 2) else 1.0 for i in range(8)])
    assert weighted_sft_loss(policy).loss.item() == close(1.02272727)
    assert sft_loss(policy).loss.item() == close(0.9375)


def test_tl_training_at_its_cap() -> None:
    """One key token among 21: 20 others, capped at 9."""
    policy = weighted([0.1 + 0.1 * i for i in range(21)], [9.0] + [1.0] * 20)
    assert weighted_sft_loss(policy).loss.item() == close(0.82413793)


# `[3] > [1] > [2]` as 11 tokens, with their negative log-probs.
RANKED = [0.1, 2, 0.05, 0.01, 0.1, 1.5, 0.05, 0.01, 0.1, 0.2, 0.05]
RANKS = [1 + 1 / math.log2(rank + 1) for rank in (1, 2, 3)]


def test_full_ranking() -> None:
    """The released code's weights: brackets count as the id's, only the separators as others, α = 1."""
    first, second, third = RANKS
    policy = weighted(RANKED, [*[first] * 3, 1, *[second] * 3, 1, *[third] * 3])
    assert -policy.weighted.item() == close(7.53603409)
    assert full_ranking_loss(policy).loss.item() == close(0.68509401)
    assert weighted_sft_loss(policy).loss.item() == close(0.43328497)
    assert sft_loss(policy).loss.item() == close(0.37909091)


def test_full_ranking_of_digits_alone() -> None:
    """α = 0.5 for brackets and separators."""
    first, second, third = RANKS
    weights = [0.5, first, 0.5, 0.5, 0.5, second, 0.5, 0.5, 0.5, third, 0.5]
    assert full_ranking_loss(weighted(RANKED, weights)).loss.item() == close(0.63467224)


def test_their_gradients_and_scales() -> None:
    """∂loss/∂Σw·log p is −1/Σw and −1/|y|; all weights times 2 leave the mean and double the sum."""
    policy, double = (weighted(RANKED, [k * w for w in range(1, 12)]) for k in (1, 2))
    (mean,) = torch.autograd.grad(weighted_sft_loss(policy).loss.sum(), policy.weighted)
    (total,) = torch.autograd.grad(full_ranking_loss(policy).loss.sum(), policy.weighted)
    assert mean.item() == close(-1 / 66) and total.item() == close(-1 / 11)
    assert weighted_sft_loss(double).loss.item() == close(weighted_sft_loss(policy).loss.item())
    assert full_ranking_loss(double).loss.item() == close(2 * full_ranking_loss(policy).loss.item())


def test_without_weights_they_are_sft() -> None:
    policy = logps([-20], [[-30]], chosen_length=[10], rejected_length=[[10]])
    for loss in (weighted_sft_loss, full_ranking_loss):
        assert loss(policy).loss.item() == close(2.0)
        assert loss(policy).rejected_reward.item() == close(-3.0)


# ---- LD-DPO


def desensitised(fronts: tuple[list, list], sums: tuple[float, list]) -> PairLogps:
    """A chosen answer and M rejected ones, with the fronts of each pair."""
    policy = logps([sums[0]], [sums[1]], chosen_length=[9], rejected_length=[[4] * len(sums[1])])
    chosen, rejected = (torch.tensor([front], dtype=torch.float64).requires_grad_() for front in fronts)
    return replace(policy, chosen_front=chosen, rejected_front=rejected)


def test_ld_dpo() -> None:
    """Chosen −20 of which −12 in front, reference −22 and −15; rejected −30 and −28, all in front: −2 nats.

    The chosen log-ratio is +3 in front and −1 behind: 3 at α = 0, 2.5 at ½, and DPO's 2 at 1.
    """
    policy = desensitised(([-12.0], [-30.0]), (-20.0, [-30.0]))
    reference = desensitised(([-15.0], [-28.0]), (-22.0, [-28.0]))
    for alpha, chosen in ((0.0, 3.0), (0.5, 2.5), (1.0, 2.0)):
        output = ld_dpo_loss(policy, reference, beta=0.1, alpha=alpha)
        assert output.loss.item() == close(softplus(-0.1 * (chosen + 2)))
        assert output.chosen_reward.item() == close(0.1 * chosen)
        assert output.rejected_reward.item() == close(-0.2)


def test_ld_dpo_splits_the_chosen_answer_for_each_pair() -> None:
    """Two rejected answers, the chosen one cut at −12 and at −5: z 0.45 and 0.1·((−12.5 + 14.5) − (−10 + 9))."""
    policy = desensitised(([-12.0, -5.0], [-30.0, -10.0]), (-20.0, [-30.0, -10.0]))
    reference = desensitised(([-15.0, -7.0], [-28.0, -9.0]), (-22.0, [-28.0, -9.0]))
    output = ld_dpo_loss(policy, reference, beta=0.1, alpha=0.5)
    assert output.loss.item() == close((softplus(-0.45) + softplus(-0.3)) / 2)
    assert output.chosen_reward.item() == close(0.1 * (2.5 + 2.0) / 2)
    slope = [-0.1 * 0.5 / (1 + math.exp(z)) / 2 for z in (0.45, 0.3)]
    gradients = torch.autograd.grad(output.loss.sum(), [policy.chosen, policy.chosen_front])
    assert gradients[0].item() == close(sum(slope))
    assert gradients[1][0].tolist() == [close(one) for one in slope]


def test_ld_dpo_at_one_is_dpo() -> None:
    policy = desensitised(([-12.0], [-30.0]), (-20.0, [-30.0]))
    reference = desensitised(([-15.0], [-28.0]), (-22.0, [-28.0]))
    one, other = ld_dpo_loss(policy, reference, beta=0.3, alpha=1.0), dpo_loss(policy, reference, beta=0.3)
    assert one.loss.item() == close(other.loss.item())
    assert one.chosen_reward.item() == close(other.chosen_reward.item())


def test_what_ld_dpo_refuses() -> None:
    policy = desensitised(([-12.0], [-30.0]), (-20.0, [-30.0]))
    bare = logps([-20], [[-30]])
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 1.5"):
        ld_dpo_loss(policy, policy, beta=0.1, alpha=1.5)
    with pytest.raises(ValueError, match=r"needs\.fronts has to ask for"):
        ld_dpo_loss(policy, bare, beta=0.1, alpha=0.5)


# ---- WPO


def sure(chosen: float, rejected: float) -> PairLogps:
    """Chosen −20 over 10 tokens, rejected −30 over 20, with these sums of log Σ p²."""
    policy = logps([-20], [[-30]], chosen_length=[10], rejected_length=[[20]])
    return replace(policy, collision=torch.tensor([[chosen, rejected]], dtype=torch.float64))


def test_wpo() -> None:
    """w = exp((−20 + 15)/10 + (−30 + 26)/20) = exp(−0.7); z = 0.1·4 against the reference −22 and −28."""
    reference = logps([-22], [[-28]], chosen_length=[10], rejected_length=[[20]])
    policy = sure(-15.0, -26.0)
    output = wpo_loss(policy, reference, beta=0.1, weight_cap=math.inf)
    weight = math.exp(-0.7)
    assert output.loss.item() == close(weight * softplus(-0.4))
    (gradient,) = torch.autograd.grad(output.loss.sum(), policy.chosen)
    assert gradient.item() == close(-weight * 0.1 / (1 + math.exp(0.4)))  # the weight has no gradient
    assert output.chosen_reward.item() == close(0.2)


def test_wpo_caps_its_weights() -> None:
    """exp((−20 + 25)/10 + (−30 + 30)/20) = exp(0.5), capped at 1: then it is DPO."""
    reference, policy = logps([-22], [[-28]]), sure(-25.0, -30.0)
    plain = dpo_loss(policy, reference, beta=0.1).loss.item()
    assert wpo_loss(policy, reference, beta=0.1, weight_cap=1.0).loss.item() == close(plain)
    open_ = wpo_loss(policy, reference, beta=0.1, weight_cap=math.inf).loss.item()
    assert open_ == close(math.exp(0.5) * plain)


def test_what_wpo_refuses() -> None:
    reference = logps([-22], [[-28]])
    with pytest.raises(ValueError, match=r"needs\.collision has to ask for"):
        wpo_loss(logps([-20], [[-30]]), reference, beta=0.1, weight_cap=1.0)
    with pytest.raises(ValueError, match="weight_cap must be above 0"):
        wpo_loss(sure(-15, -26), reference, beta=0.1, weight_cap=0.0)
