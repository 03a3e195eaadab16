"""Intervals against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from align.evaluation.intervals import mean_interval, paired_difference, wilson


def test_bootstrap_is_near_the_normal_interval():
    """400 values of variance 1/4: the half width is about 1.96 · 0.5 / 20 = 0.049."""
    values = [0.0, 1.0] * 200
    interval = mean_interval(values)
    assert interval.mean == 0.5
    assert interval.n == 400
    assert interval.high - interval.mean == pytest.approx(0.049, abs=0.004)
    assert interval.mean - interval.low == pytest.approx(0.049, abs=0.004)


def test_all_right_is_not_certain():
    """Wilson's interval for 10 of 10 at 0.95 begins at n / (n + z²) = 10 / 13.841."""
    interval = mean_interval([1.0] * 10)
    assert interval.low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)
    assert interval.high == 1.0


def test_wilson_known_value():
    """5 of 20: Newcombe 1998's formula gives 0.1119 … 0.4687."""
    assert wilson(5, 20) == pytest.approx((0.1119, 0.4687), abs=1e-4)


def test_pairing_removes_what_samples_share():
    """Scores differ by exactly 0.1 everywhere: the paired interval is a point, however the samples scatter."""
    first = np.random.default_rng(0).normal(size=50)
    interval = paired_difference(first, first - 0.1)
    assert (interval.low, interval.mean, interval.high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(1).random(30).tolist()
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)


def test_refusals():
    with pytest.raises(ValueError, match="differ in number"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
