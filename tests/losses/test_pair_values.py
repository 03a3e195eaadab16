"""Values and gradients of the variants of DPO that somebody derived, in fp64, to 1e-8."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from losses import (
    LossOutput,
    PairLogps,
    alphapo_loss,
    apo_down_loss,
    apo_zero_loss,
    discopop_loss,
    dpo_loss,
    dpo_norm_loss,
    dpop_loss,
    dr_dpo_loss,
    exo_pair_loss,
    f_dpo_loss,
    hinge_dpo_loss,
    mixture_loss,
    nca_pair_loss,
    sft_loss,
    simpo_loss,
    slic_loss,
    sppo_hard_loss,
)
from losses._pairs import LARGEST_EXPONENT
from losses.divergences import alpha, chi_squared, forward_kl, jensen_shannon, reverse_kl
from tests.losses.cases import logps


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    """log(1 + eˣ) = −log σ(−x)."""
    return math.log1p(math.exp(x))


def close(expected: float) -> object:
    return pytest.approx(expected, abs=1e-8, rel=0)


def policy(chosen: float = -20, rejected: float = -30) -> PairLogps:
    """Chosen −20 nats over 10 tokens, rejected −30 over 20."""
    return logps([chosen], [[rejected]], chosen_length=[10], rejected_length=[[20]])


def reference() -> PairLogps:
    """Chosen −22 and rejected −28 nats: log-ratios +2 and −2."""
    return logps([-22], [[-28]], chosen_length=[10], rejected_length=[[20]])


Loss = Callable[[PairLogps, PairLogps | None], LossOutput]

# By z = 0.4, s' = s·(1 − s)/τ: s'·[e^(−z) − softplus(−z)] − (1 − s)·σ(−z) − s·e^(−z).
DISCOPOP_SLOPE = (
    20 * sigmoid(8) * sigmoid(-8) * (math.exp(-0.4) - softplus(-0.4))
    - sigmoid(-8) * sigmoid(-0.4)
    - sigmoid(8) * math.exp(-0.4)
)

# γ less the margin of AlphaPO's rewards 4·(1 − e) and 4·(1 − e^0.75).
ALPHAPO_LACK = 0.5 + 4 * (math.e - math.exp(0.75))

# A loss, its value at log-ratios +2 and −2, and its slopes by the chosen and the rejected sum.
GOLDEN = [
    # z = 5·(2/10 + 2/20) = 1.5; slopes −β/|y|·σ(−z) and +.
    (
        partial(dpo_norm_loss, beta=5.0),
        softplus(-1.5),
        -0.5 * sigmoid(-1.5),
        0.25 * sigmoid(-1.5),
    ),
    # r = ±0.2: 1 − σ(0.2) + σ(−0.2) = 2σ(−0.2); σ' = σ(0.2)·σ(−0.2) at both.
    (
        partial(apo_zero_loss, beta=0.1),
        2 * sigmoid(-0.2),
        -0.1 * sigmoid(0.2) * sigmoid(-0.2),
        0.1 * sigmoid(0.2) * sigmoid(-0.2),
    ),
    # σ(0.2) + 1 − σ(0.4); the chosen answer's slope is β·(σ'(0.2) − σ'(0.4)) > 0: it is made less likely.
    (
        partial(apo_down_loss, beta=0.1),
        sigmoid(0.2) + sigmoid(-0.4),
        0.1 * (sigmoid(0.2) * sigmoid(-0.2) - sigmoid(0.4) * sigmoid(-0.4)),
        0.1 * sigmoid(0.4) * sigmoid(-0.4),
    ),
    # The chosen answer is likelier than under the reference: DPO, z = 0.4.
    (
        partial(dpop_loss, beta=0.1, penalty=50.0),
        softplus(-0.4),
        -0.1 * sigmoid(-0.4),
        0.1 * sigmoid(-0.4),
    ),
    # KL(p‖q), p = σ(0.4), q = 0.9; its slope by z is p·(1 − p)·[log p/(1 − p) − log q/(1 − q)] = p(1 − p)(0.4 − log 9).
    (
        partial(exo_pair_loss, beta=0.1, label_smoothing=0.1),
        sigmoid(0.4) * math.log(sigmoid(0.4) / 0.9) + sigmoid(-0.4) * math.log(sigmoid(-0.4) / 0.1),
        0.1 * sigmoid(0.4) * sigmoid(-0.4) * (0.4 - math.log(9)),
        -0.1 * sigmoid(0.4) * sigmoid(-0.4) * (0.4 - math.log(9)),
    ),
    # softplus(−0.2) + ½·softplus(0.2) + ½·softplus(−0.2); slopes −σ(−0.2) + ½σ(0.2) and ½σ(−0.2), times β.
    (
        partial(nca_pair_loss, beta=0.1),
        1.5 * softplus(-0.2) + 0.5 * softplus(0.2),
        0.1 * (0.5 * sigmoid(0.2) - sigmoid(-0.2)),
        0.1 * 0.5 * sigmoid(-0.2),
    ),
    # Goals ±5 nats: (2 − 5)² + (−2 + 5)²; slopes 2·(−3) and 2·3.
    (partial(sppo_hard_loss, beta=0.1), 18.0, -6.0, 6.0),
    # z = 0.4: 1 − 0.4; at β = 0.3 z = 1.2 is beyond the margin.
    (partial(hinge_dpo_loss, beta=0.1), 0.6, -0.1, 0.1),
    (partial(hinge_dpo_loss, beta=0.3), 0.0, 0.0, 0.0),
    # Means −2 and −1.5 nats (−30 over 20 tokens), α = ½: r = 4·(1 − e^(−x/2)); slopes by a sum: 2·e^(−x/2) / |y|.
    (
        partial(alphapo_loss, beta=2.0, gamma=0.5, alpha=0.5),
        softplus(ALPHAPO_LACK),
        -2 * math.e / 10 * sigmoid(ALPHAPO_LACK),
        2 * math.exp(0.75) / 20 * sigmoid(ALPHAPO_LACK),
    ),
    # Without a reference: −20 and −30 are 10 nats apart, of 15 asked for; the NLL is 2 nats a token.
    (partial(slic_loss, margin=15.0, nll_weight=0.5), 5.0 + 0.5 * 2.0, -1.0 - 0.5 / 10, 1.0),
    # z = 0.4, s = σ(8): (1 − s)·softplus(−z) + s·e^(−z).
    (
        partial(discopop_loss, beta=0.1, tau=0.05),
        sigmoid(-8) * softplus(-0.4) + sigmoid(8) * math.exp(-0.4),
        0.1 * DISCOPOP_SLOPE,
        -0.1 * DISCOPOP_SLOPE,
    ),
    # f' = −1/u: margin 0.1·(e² − e⁻²), slopes of −1/u by log u: e^(−x).
    (
        partial(f_dpo_loss, beta=0.1, divergence=forward_kl),
        softplus(-0.1 * (math.exp(2) - math.exp(-2))),
        -0.1 * math.exp(-2) * sigmoid(-0.1 * (math.exp(2) - math.exp(-2))),
        0.1 * math.exp(2) * sigmoid(-0.1 * (math.exp(2) - math.exp(-2))),
    ),
    # f' = log(2u/(1 + u)): margin 0.1·[softplus(2) − softplus(−2)] = 0.1·2; slopes by log u: σ(−x).
    (
        partial(f_dpo_loss, beta=0.1, divergence=jensen_shannon),
        softplus(-0.2),
        -0.1 * sigmoid(-2) * sigmoid(-0.2),
        0.1 * sigmoid(2) * sigmoid(-0.2),
    ),
    # α = ½: f' = 2·(1 − u^(−½)): margin 0.2·(e − 1/e); slopes by log u: u^(−½).
    (
        partial(f_dpo_loss, beta=0.1, divergence=partial(alpha, alpha=0.5)),
        softplus(-0.2 * (math.e - 1 / math.e)),
        -0.1 / math.e * sigmoid(-0.2 * (math.e - 1 / math.e)),
        0.1 * math.e * sigmoid(-0.2 * (math.e - 1 / math.e)),
    ),
    # f' = u + log u: margin 0.1·(e² − e⁻² + 4); slopes by log u: u + 1.
    (
        partial(f_dpo_loss, beta=0.1, divergence=chi_squared),
        softplus(-0.1 * (math.exp(2) - math.exp(-2) + 4)),
        -0.1 * (math.exp(2) + 1) * sigmoid(-0.1 * (math.exp(2) - math.exp(-2) + 4)),
        0.1 * (math.exp(-2) + 1) * sigmoid(-0.1 * (math.exp(2) - math.exp(-2) + 4)),
    ),
]


@pytest.mark.parametrize(("loss", "value", "by_chosen", "by_rejected"), GOLDEN)
def test_value_and_gradient(loss: Loss, value: float, by_chosen: float, by_rejected: float) -> None:
    pair = policy()
    output = loss(pair, reference())
    assert output.loss.dtype == torch.float64 and output.loss.item() == close(value)
    output.loss.sum().backward()
    assert pair.chosen.grad.item() == close(by_chosen)
    assert pair.rejected.grad.item() == close(by_rejected)


def test_dpop_charges_what_the_chosen_answer_loses() -> None:
    """Chosen ratio −0.1, rejected −4: z = 0.1·(−0.1 + 4 − 50·0.1) = −0.11; a nat more of the chosen gives 51·β."""
    pair = policy(chosen=-22.1, rejected=-32)
    output = dpop_loss(pair, reference(), beta=0.1, penalty=50.0)
    assert output.loss.item() == close(softplus(0.11))
    output.loss.sum().backward()
    assert pair.chosen.grad.item() == close(-51 * 0.1 * sigmoid(0.11))
    assert pair.rejected.grad.item() == close(0.1 * sigmoid(0.11))
    plain = dpop_loss(policy(-22.1, -32), reference(), beta=0.1, penalty=0.0)
    assert plain.loss.item() == close(dpo_loss(policy(-22.1, -32), reference(), beta=0.1).loss.item())


def test_exo_is_lowest_where_the_model_says_what_the_labels_say() -> None:
    """p = 1 − ε: the divergence is 0; z = log(0.9/0.1) = β·(ratios' difference of 2.19722…/0.1)."""
    apart = math.log(9) / 0.1
    output = exo_pair_loss(policy(-22 + apart, -28), reference(), beta=0.1, label_smoothing=0.1)
    assert output.loss.item() == close(0.0)


def test_nca_is_lowest_at_a_reward_of_log_2() -> None:
    """By r_w: −σ(−r) + ½·σ(r) = 0 where σ(r) = ⅔, whatever the rejected answer."""
    pair = policy(-22 + math.log(2) / 0.1)
    nca_pair_loss(pair, reference(), beta=0.1).loss.sum().backward()
    assert pair.chosen.grad.item() == close(0.0)


def test_discopop_lowers_the_margin_where_it_starts() -> None:
    """At z = 0, s = ½: loss ½·log 2 + ½; slope by z: 5·(1 − log 2) − ¼ − ½ = +0.784: downhill is a lower margin."""
    pair = policy(-22, -28)
    output = discopop_loss(pair, reference(), beta=0.1, tau=0.05)
    assert output.loss.item() == close(0.5 * math.log(2) + 0.5)
    output.loss.sum().backward()
    assert pair.chosen.grad.item() == close(0.1 * (5 * (1 - math.log(2)) - 0.75))


def test_several_rejected_answers_are_averaged() -> None:
    """Ratios −2 and −7 beside a chosen +2: each loss is the mean of its two pairs."""
    pair = logps([-20], [[-30, -35]], chosen_length=[10], rejected_length=[[20, 20]])
    base = logps([-22], [[-28, -28]], chosen_length=[10], rejected_length=[[20, 20]])
    for loss, *_ in GOLDEN:
        singles = [loss(policy(-20, rejected), reference()).loss.item() for rejected in (-30, -35)]
        assert loss(pair, base).loss.item() == close(sum(singles) / 2)


def test_alphapo_is_simpo_for_a_small_alpha() -> None:
    found = alphapo_loss(policy(), beta=2.0, gamma=0.5, alpha=1e-9)
    assert found.loss.item() == close(simpo_loss(policy(), beta=2.0, gamma=0.5).loss.item())


def two_prompts(second: float = -23) -> tuple[PairLogps, PairLogps]:
    """Margins of 0.4 and, at β = 0.1, of 0.1·(−1 − 1) = −0.2, with a third prompt that has no rejected answer."""
    lengths = {"chosen_length": [10, 10, 10], "rejected_length": [[20], [20], [0]]}
    pair = logps([-20, second, -5], [[-30], [-27], [-99]], **lengths)
    return pair, logps([-22, -22, -5], [[-28], [-28], [-1]], **lengths)


def test_dr_dpo_is_a_soft_minimum_over_the_step() -> None:
    """exp(−ℓ) = σ(z): −log of the mean of σ(0.4) and σ(−0.2); a prompt without a pair has no say and no loss."""
    pair, base = two_prompts()
    output = dr_dpo_loss(pair, base, beta=0.1, beta_prime=1.0)
    total = sigmoid(0.4) + sigmoid(-0.2)
    assert output.loss.tolist() == pytest.approx([-math.log(total / 2)] * 2 + [0], abs=1e-8)
    output.loss[0].backward()
    slopes = [-0.1 * sigmoid(z) * sigmoid(-z) / total for z in (0.4, -0.2)] + [0]
    assert pair.chosen.grad.tolist() == pytest.approx(slopes, abs=1e-8)
    assert pair.rejected.grad[:, 0].tolist() == pytest.approx([-slope for slope in slopes], abs=1e-8)


def test_dr_dpo_forgets_a_pair_that_is_far_off_and_tends_to_dpo() -> None:
    """A pair that is wrong by 1,000 nats leaves the other's loss plus log 2; β' → ∞ is DPO's mean."""
    found = dr_dpo_loss(*two_prompts(second=-10_000), beta=0.1, beta_prime=1.0).loss[0].item()
    assert found == close(softplus(-0.4) + math.log(2))
    mean = (softplus(-0.4) + softplus(0.2)) / 2
    assert dr_dpo_loss(*two_prompts(), beta=0.1, beta_prime=1e7).loss[1].item() == close(mean)


# ---- divergences


def test_reverse_kl_is_dpo() -> None:
    found = f_dpo_loss(policy(), reference(), beta=0.1, divergence=reverse_kl)
    expected = dpo_loss(policy(), reference(), beta=0.1)
    assert found.loss.item() == expected.loss.item()
    assert found.rejected_reward.tolist() == expected.rejected_reward.tolist()


@pytest.mark.parametrize(
    "divergence", [reverse_kl, forward_kl, jensen_shannon, partial(alpha, alpha=0.3), chi_squared]
)
def test_a_divergence_is_0_at_equal_likelihoods_rises_and_is_exact_near_0(divergence: Callable) -> None:
    """f'(1) is taken as 0; x = 1e-12 moves each by f''(1)·x (½ for Jensen–Shannon, 2 for χ² with KL, 1 else)."""
    x = torch.tensor([-1e5, -100, -30, -2, 0, 2, 29, 1e5], dtype=torch.float64, requires_grad=True)
    values = divergence(x)
    assert values[4].item() == pytest.approx(0, abs=1e-15)
    assert torch.isfinite(values).all() and (values.diff() >= 0).all()
    (slopes,) = torch.autograd.grad(values.sum(), x)
    assert torch.isfinite(slopes).all() and (slopes[:4] > 0).all()
    if divergence is not jensen_shannon:
        small = divergence(torch.tensor(1e-12, dtype=torch.float64)).item()
        assert small == pytest.approx(2e-12 if divergence is chi_squared else 1e-12, rel=1e-9)


def test_alpha_lies_between_the_two_kl_divergences() -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    torch.testing.assert_close(alpha(x, alpha=1e-9), reverse_kl(x), rtol=1e-7, atol=0)
    torch.testing.assert_close(alpha(x, alpha=1 - 1e-12), forward_kl(x), rtol=1e-9, atol=1e-9)


def test_beyond_an_exponent_of_30_the_tangent_goes_on() -> None:
    """forward_kl(−30) = 1 − e³⁰ as it should be; one nat further 1 − e³⁰·(1 + 1), slope e³⁰."""
    x = torch.tensor([-LARGEST_EXPONENT, -LARGEST_EXPONENT - 1], dtype=torch.float64, requires_grad=True)
    values = forward_kl(x)
    top = math.exp(30)
    assert values.tolist() == pytest.approx([1 - top, 1 - 2 * top], rel=1e-12)
    (slopes,) = torch.autograd.grad(values[1], x)
    assert slopes[1].item() == pytest.approx(top, rel=1e-12)


# ---- mixtures


def test_a_mixture_is_the_weighted_sum_with_the_rewards_of_its_first() -> None:
    """1·DPO + 0.1·SFT is DPO with λ = 0.1, bit by bit; 0.5 and 2 of two references' losses is their sum."""
    losses = {"dpo": partial(dpo_loss, beta=0.1), "sft": sft_loss}
    found = mixture_loss(policy(), reference(), losses=losses, weights={"dpo": 1.0, "sft": 0.1})
    expected = dpo_loss(policy(), reference(), beta=0.1, nll_weight=0.1)
    assert found.loss.item() == close(expected.loss.item()) == close(softplus(-0.4) + 0.2)
    assert found.chosen_reward.tolist() == expected.chosen_reward.tolist()
    losses = {"sppo": partial(sppo_hard_loss, beta=0.1), "apo": partial(apo_zero_loss, beta=0.1)}
    found = mixture_loss(policy(), reference(), losses=losses, weights={"apo": 2, "sppo": 0.5})
    assert found.loss.item() == close(0.5 * 18 + 2 * 2 * sigmoid(-0.2))


def test_a_mixture_of_losses_without_a_reference() -> None:
    losses = {"simpo": partial(simpo_loss, beta=2.0, gamma=1.0), "sft": sft_loss}
    found = mixture_loss(policy(), losses=losses, weights={"simpo": 1.0, "sft": 1.0})
    assert found.loss.item() == close(simpo_loss(policy(), beta=2.0, gamma=1.0, nll_weight=1.0).loss.item())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(dpop_loss, beta=0.1, penalty=-1.0), "penalty must be 0 or more"),
        (partial(exo_pair_loss, beta=0.1, label_smoothing=0.0), r"label_smoothing must lie in \(0, 0.5\)"),
        (partial(discopop_loss, beta=0.1, tau=1.0), r"tau must lie in \(0, 1\)"),
        (partial(f_dpo_loss, beta=0.1, divergence=partial(alpha, alpha=1.0)), "take reverse_kl for 0"),
        (partial(f_dpo_loss, beta=0.0, divergence=reverse_kl), "beta must be above 0"),
        (partial(dr_dpo_loss, beta=0.1, beta_prime=0.0), "beta_prime must be above 0"),
        (partial(alphapo_loss, beta=1.0, gamma=0.0, alpha=0.0), "alpha must not be 0"),
        (partial(sppo_hard_loss, beta=0.0), "beta must be above 0"),
        (partial(mixture_loss, losses={}, weights={}), "losses: none; weights: none"),
        (partial(mixture_loss, losses={"a": sft_loss}, weights={"b": 1}), "losses: a; weights: b"),
        (partial(mixture_loss, losses={"a": sft_loss}, weights={"a": -1}), "weights.a must be"),
        (partial(mixture_loss, losses={"a": sft_loss}, weights={"a": "1"}), "weights.a must be"),
    ],
)
def test_settings_out_of_range_are_named(call: Loss, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(policy(), reference())
