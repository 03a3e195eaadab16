"""Values and gradients that somebody derived, in fp64."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from losses import (
    LossOutput,
    PairLogps,
    cpo_loss,
    dpo_loss,
    ipo_loss,
    logo_loss,
    longpo_loss,
    orpo_loss,
    robust_dpo_loss,
    sft_loss,
    simpo_loss,
    solopo_loss,
)
from losses.rewards import log_odds_reward, log_ratio_reward, mean_logp_reward
from tests.losses.cases import logps


def softplus(x: float) -> float:
    """log(1 + eˣ) = −log σ(−x)."""
    return math.log1p(math.exp(x))


def value(output: LossOutput) -> float:
    assert output.loss.dtype == torch.float64
    return output.loss.item()


def close(expected: float) -> object:
    return pytest.approx(expected, abs=1e-7, rel=0)


def policy() -> PairLogps:
    """Chosen −20 and rejected −30 nats, 10 tokens each: means −2 and −3."""
    return logps([-20], [[-30]], chosen_length=[10], rejected_length=[[10]])


def reference() -> PairLogps:
    """Chosen −22 and rejected −28 nats: log-ratios +2 and −2, so DPO's z = β·4."""
    return logps([-22], [[-28]], chosen_length=[10], rejected_length=[[10]])


LOGO = [
    ([-1.0], 10.0, 3.0, 0.12692801),
    ([-1.0, -2.0], 10.0, 3.0, 0.00091147),
    ([-1.0, -2.0], 2.5, 0.25, 0.10020656),
    ([-1.0, -2.0], 3.0, 0.6, 0.08683615),
    ([-1.0, -2.0], 2.0, 0.5, 0.20141328),
]


@pytest.mark.parametrize(("rejected", "beta", "gamma", "expected"), LOGO)
def test_logo_values(rejected: list[float], beta: float, gamma: float, expected: float) -> None:
    """−log σ(β·c − β·mean(r) − γ); first row: 10·(−0.5) − 10·(−1) − 3 = 2 and −log σ(2) = 0.12692801."""
    output = logo_loss(logps([-0.5], [rejected]), beta=beta, gamma=gamma, sft_weight=0.0)
    assert value(output) == pytest.approx(expected, abs=1e-8, rel=0)
    assert output.chosen_reward.item() == close(-0.5 * beta)
    assert output.rejected_reward[0].tolist() == pytest.approx([beta * r for r in rejected])


def test_logo_gradients() -> None:
    """Row 3: z = 2.25, dL/dc = −β·σ(−z) = −2.5·0.0953495; each of two rejected gets half the opposite."""
    pair = logps([-0.5], [[-1, -2]])
    logo_loss(pair, beta=2.5, gamma=0.25, sft_weight=0.0).loss.sum().backward()
    assert pair.chosen.grad.item() == pytest.approx(-0.238374, abs=5e-7)
    assert pair.rejected.grad[0].tolist() == pytest.approx([0.119187, 0.119187], abs=5e-7)


def test_logo_takes_means_over_tokens_and_adds_the_nll() -> None:
    """Sums −5 over 10 tokens, −4 over 4 and −6 over 3 are the means −0.5, −1, −2; λ·NLL = 0.1·0.5."""
    pair = logps([-5], [[-4, -6]], chosen_length=[10], rejected_length=[[4, 3]])
    output = logo_loss(pair, beta=2.5, gamma=0.25, sft_weight=0.1)
    assert value(output) == close(-math.log(1 / (1 + math.exp(-2.25))) + 0.05)


@pytest.mark.parametrize("nll_weight", [0.0, 0.1])
def test_logo_with_one_rejected_is_simpo(nll_weight: float) -> None:
    """M = 1: the mean inside the sigmoid is over one answer."""
    pair = logps([-5, -7], [[-4], [-20]], chosen_length=[10, 3], rejected_length=[[4], [9]])
    logo = logo_loss(pair, beta=2.0, gamma=0.5, sft_weight=nll_weight)
    simpo = simpo_loss(pair, beta=2.0, gamma=0.5, nll_weight=nll_weight)
    torch.testing.assert_close(logo.loss, simpo.loss, rtol=0, atol=1e-15)


def test_simpo_averages_outside_the_sigmoid() -> None:
    """c = −0.5, r = −1, −2, β 2, γ 0.5: margins 0.5 and 2.5, loss (softplus(−0.5) + softplus(−2.5)) / 2."""
    output = simpo_loss(logps([-0.5], [[-1, -2]]), beta=2.0, gamma=0.5)
    assert value(output) == close((softplus(-0.5) + softplus(-2.5)) / 2)


def test_longpo_value_and_gradients() -> None:
    """Two turns summed: reference −90 and −105; z = 0.1·(−30) − 0.1·(−45) = 1.5, −log σ(1.5) = 0.201413.

    total = 0.01·0.201413 + 2; d total/d chosen = −λ·β·σ(−1.5) = −0.01·0.1·0.182426.
    """
    pair = logps([-120], [[-150]], nll=[2.0])
    short = logps([-40 - 50], [[-60 - 45]])
    output = longpo_loss(pair, short, beta=0.1, preference_weight=0.01, nll_weight=1.0)
    assert value(output) == close(2.00201413)
    assert output.chosen_reward.item() == close(-3.0)
    assert output.rejected_reward.item() == close(-4.5)
    output.loss.sum().backward()
    assert pair.chosen.grad.item() == pytest.approx(-1.82426e-4, rel=1e-5)
    assert pair.rejected.grad.item() == pytest.approx(1.82426e-4, rel=1e-5)
    assert pair.nll.grad.item() == 1.0


def test_dpo_value() -> None:
    """z = 0.1·(2 + 2) = 0.4, loss softplus(−0.4), rewards ±0.2, d/d chosen = −β·σ(−0.4)."""
    pair = policy()
    output = dpo_loss(pair, reference(), beta=0.1)
    assert value(output) == close(softplus(-0.4))
    assert output.chosen_reward.item() == close(0.2)
    assert output.rejected_reward.item() == close(-0.2)
    output.loss.sum().backward()
    assert pair.chosen.grad.item() == close(-0.1 / (1 + math.exp(0.4)))


def test_conservative_dpo_value() -> None:
    """softplus(z) = softplus(−z) + z, so (1 − ε)·softplus(−z) + ε·softplus(z) = softplus(−z) + ε·z."""
    output = dpo_loss(policy(), reference(), beta=0.1, label_smoothing=0.1)
    assert value(output) == close(softplus(-0.4) + 0.1 * 0.4)


def test_dpo_with_nll_value() -> None:
    """LongReward's: DPO at β 0.15 (z = 0.6) plus 0.1 × the chosen mean NLL of 2 nats."""
    output = dpo_loss(policy(), reference(), beta=0.15, nll_weight=0.1)
    assert value(output) == close(softplus(-0.6) + 0.2)


def test_robust_dpo_value() -> None:
    """[(1 − ε)·s − ε·(s + z)] / (1 − 2ε) = s − z·ε/(1 − 2ε), s = softplus(−z); ε 0.1: s − 0.05."""
    output = robust_dpo_loss(policy(), reference(), beta=0.1, label_smoothing=0.1)
    assert value(output) == close(softplus(-0.4) - 0.05)


def test_robust_dpo_is_unbiased() -> None:
    """(1 − ε)·L(w, l) + ε·L(l, w) = DPO(w, l): flipped labels cancel in the mean."""
    flipped = logps([-30], [[-20]], chosen_length=[10], rejected_length=[[10]])
    flipped_reference = logps([-28], [[-22]], chosen_length=[10], rejected_length=[[10]])
    loss = partial(robust_dpo_loss, beta=0.1, label_smoothing=0.2)
    mean = 0.8 * value(loss(policy(), reference())) + 0.2 * value(loss(flipped, flipped_reference))
    assert mean == close(value(dpo_loss(policy(), reference(), beta=0.1)))


def test_ipo_value() -> None:
    """h = 2/10 + 2/10 = 0.4 nats a token against 1/(2·0.1) = 5: (0.4 − 5)² = 21.16."""
    output = ipo_loss(policy(), reference(), beta=0.1)
    assert value(output) == close(21.16)
    assert output.chosen_reward.item() == close(0.2)


def test_cpo_value() -> None:
    """z = 0.1·(−20 + 30) = 1: softplus(−1) plus the NLL of 2 nats a token; ε adds ε·z."""
    assert value(cpo_loss(policy(), beta=0.1, nll_weight=1.0)) == close(softplus(-1) + 2)
    smoothed = cpo_loss(policy(), beta=0.1, nll_weight=1.0, label_smoothing=0.1)
    assert value(smoothed) == close(softplus(-1) + 0.1 + 2)


def test_orpo_value() -> None:
    """p = 1/2 and 1/4: odds 1 and 1/3, −log σ(log 3) = log(4/3), NLL log 2."""
    pair = logps([3 * math.log(0.5)], [[5 * math.log(0.25)]], chosen_length=[3], rejected_length=[[5]])
    assert value(orpo_loss(pair, beta=0.1)) == close(math.log(2) + 0.1 * math.log(4 / 3))


def test_log_odds_at_both_ends() -> None:
    """log p − log(1 − p): p → 0 gives log p; p = 1 − 1e-9 gives −log 1e-9; p = 1 stays finite, slope too."""
    pair = logps([-50, math.log1p(-1e-9), 0], [[], [], []])
    odds, _ = log_odds_reward(pair, beta=1.0)
    assert odds[:2].tolist() == pytest.approx([-50, -math.log(1e-9)], rel=1e-7)
    odds.sum().backward()
    assert torch.isfinite(odds).all() and torch.isfinite(pair.chosen.grad).all()


def test_sft_value() -> None:
    """20 nats over 10 tokens, whatever the rejected answer."""
    assert value(sft_loss(policy())) == close(2.0)


def test_solopo_value() -> None:
    """Short means −1 and −2, β 2, γ 1: z = 2 − 1 = 1. Rewards of the chosen −2 short, −3 long: α·1 = 3."""
    pair = logps([-1.5], [[-9]], short=logps([-1], [[-2]]))
    simpo = partial(simpo_loss, beta=2.0, gamma=1.0)
    reward = partial(mean_logp_reward, beta=2.0)
    output = solopo_loss(pair, preference=simpo, reward=reward, alignment_weight=3.0)
    assert value(output) == close(softplus(-1) + 3)
    assert output.chosen_reward.item() == close(-3.0)


def test_solopo_with_dpo() -> None:
    """Short: ratios 2 and −2, z = 0.4. Long chosen ratio 5: |0.1·2 − 0.1·5| = 0.3."""
    pair = logps([-17], [[-30]], short=policy())
    base = logps([-22], [[-28]], short=reference())
    dpo = partial(dpo_loss, beta=0.1)
    reward = partial(log_ratio_reward, beta=0.1)
    output = solopo_loss(pair, base, preference=dpo, reward=reward, alignment_weight=1.0)
    assert value(output) == close(softplus(-0.4) + 0.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dpo_loss(policy(), None, beta=0.1), "dpo_loss compares .* reference"),
        (lambda: ipo_loss(policy(), None, beta=0.1), "ipo_loss compares"),
        (lambda: robust_dpo_loss(policy(), None, beta=0.1, label_smoothing=0.1), "robust_dpo_loss compares"),
        (
            lambda: longpo_loss(policy(), None, beta=1, preference_weight=1, nll_weight=1),
            "longpo_loss compares",
        ),
        (
            lambda: longpo_loss(policy(), reference(), beta=1, preference_weight=1, nll_weight=1),
            "policy.nll",
        ),
        (lambda: dpo_loss(policy(), reference(), beta=0.1, label_smoothing=0.5), "label_smoothing must lie"),
        (
            lambda: cpo_loss(policy(), beta=0.1, nll_weight=1, label_smoothing=-0.1),
            "label_smoothing must lie",
        ),
        (lambda: dpo_loss(policy(), logps([-1], [[-1, -2]]), beta=0.1), "both must score the same answers"),
        (
            lambda: solopo_loss(policy(), preference=sft_loss, reward=mean_logp_reward, alignment_weight=1),
            "policy.short",
        ),
    ],
)
def test_what_is_missing_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
