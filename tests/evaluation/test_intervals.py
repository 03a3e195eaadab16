"""Intervals against closed forms, and how often they hold the truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from align.evaluation.intervals import (
    Interval,
    Measure,
    mean_interval,
    paired_difference,
    proportion_interval,
)
from align.scores.wilson import wilson

TRIALS = 300
# Of 300 draws at 0.95 fewer than 0.91 hold the truth once in a thousand.
COVERED = 0.91


def test_a_mean_has_students_interval():
    """1, 2, 3, 4: mean 2.5, variance 5/3, t(3) = 3.1824: ± 3.1824 · sqrt(5/12) = 2.0543."""
    interval = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert (interval.mean, interval.n, interval.independent) == (2.5, 4, 4)
    assert (interval.low, interval.high) == pytest.approx((2.5 - 2.0543, 2.5 + 2.0543), abs=1e-3)


def test_groups_count_and_not_their_samples():
    """Two questions at 25 lengths, one always right and one never, are two values: 0 and 1."""
    values, groups = [0.0] * 25 + [1.0] * 25, ["a"] * 25 + ["b"] * 25
    assert mean_interval(values, groups=groups).low == pytest.approx(mean_interval([0.0, 1.0]).low)
    interval = proportion_interval(values, groups=groups)
    assert (interval.n, interval.independent) == (50, 2)
    assert interval.low < 0.05
    assert interval.high > 0.95


def test_a_proportion_has_wilsons_interval():
    """5 of 20: Newcombe 1998's formula gives 0.1119 … 0.4687; 10 of 10 begins at n / (n + z²) = 10 / 13.841."""
    assert wilson(5, 20) == pytest.approx((0.1119, 0.4687), abs=1e-4)
    interval = proportion_interval([1.0] * 5 + [0.0] * 15)
    assert (interval.low, interval.high) == pytest.approx((0.1119, 0.4687), abs=1e-4)
    interval = proportion_interval([1.0] * 10)
    assert (interval.low, interval.high) == (pytest.approx(10 / (10 + 1.959964**2), abs=1e-6), 1.0)
    alike = proportion_interval([1.0] * 50, groups=[i % 2 for i in range(50)])
    assert (alike.low, alike.high) == wilson(2, 2)


def test_what_is_alike_and_no_proportion():
    """Margins of 0 say nothing of their spread; three scores of 100 out of 0 … 100 leave 1 − 0.025^(1/3) = 0.7076."""
    for values in ([0.0] * 4, [0.5], [1.0, 1.0]):
        interval = mean_interval(values)
        assert (interval.low, interval.high) == (None, None)
        assert "alike" in interval.why or "one sample" in interval.why
    interval = mean_interval([100.0] * 3, bounds=(0.0, 100.0))
    assert (interval.low, interval.high) == (pytest.approx(29.24, abs=0.01), 100.0)
    ties = paired_difference([1.0] * 30, [1.0] * 30, bounds=(-1.0, 1.0))
    assert ties.low == -ties.high == pytest.approx(-(1 - 0.025 ** (1 / 30)))
    one_group = mean_interval([1.0, 2.0], groups=["a", "a"])
    assert one_group.low is None
    assert "belong together" in one_group.why


def test_an_interval_stays_within_the_bounds():
    interval = mean_interval([100.0, 100.0, 0.0], bounds=(0.0, 100.0))
    assert (interval.low, interval.high) == (0.0, 100.0)


@pytest.mark.parametrize("way", [mean_interval, proportion_interval])
def test_no_number_is_no_interval(way):
    interval = way([0.5, math.nan])
    assert math.isnan(interval.mean)
    assert (interval.low, interval.why) == (None, "some values are no numbers")


def test_pairing_removes_what_samples_share():
    """Scores that scatter by 1 differ by 0.1 ± 0.01: so does the interval, of 50 samples ± 0.003."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=50)
    interval = paired_difference(first, first - 0.1 - 0.01 * rng.normal(size=50))
    assert interval.low is not None
    assert interval.high - interval.low == pytest.approx(2 * 0.00284, rel=0.2)


def test_a_measure_tells_what_is_better():
    score = Measure(proportion_interval, "higher").of([1.0, 0.0])
    assert (score.mean, score.better) == (0.5, "higher")


# ---- coverage


def covered(draw: Callable[[], tuple], truth: float, way: Callable[..., Interval]) -> float:
    """The share of intervals that hold the truth."""
    found = 0
    for _ in range(TRIALS):
        values, groups = draw()
        interval = way(values, groups=groups)
        assert interval.low is not None
        found += interval.low - 1e-12 <= truth <= interval.high + 1e-12
    return found / TRIALS


@pytest.mark.parametrize("questions", [2, 4, 10, 30])
def test_coverage_of_questions_asked_often(questions):
    """Each question has a probability of its own, uniform in [0, 1], and is asked at 25 lengths and depths."""
    rng = np.random.default_rng(questions)
    groups = np.repeat(np.arange(questions), 25).tolist()

    def draw() -> tuple:
        own = rng.random(questions)
        return (rng.random((questions, 25)) < own[:, None]).astype(float).ravel().tolist(), groups

    assert covered(draw, 0.5, proportion_interval) >= COVERED
    naive = covered(lambda: (draw()[0], None), 0.5, proportion_interval)
    assert naive < 0.7  # what 25 answers to one question taken for 25 questions give


@pytest.mark.parametrize(("n", "p"), [(5, 0.5), (10, 0.2), (20, 0.9), (50, 0.95)])
def test_coverage_of_proportions(n, p):
    rng = np.random.default_rng(n)
    assert covered(lambda: ((rng.random(n) < p).astype(float), None), p, proportion_interval) >= COVERED


@pytest.mark.parametrize("n", [3, 10, 50])
def test_coverage_of_means(n):
    """Numbers without bounds, and scores of 0 … 100 of which four fifths are 100."""
    rng = np.random.default_rng(n)
    assert covered(lambda: (rng.normal(size=n), None), 0.0, mean_interval) >= COVERED

    def scores() -> tuple:
        return np.where(rng.random(n) < 0.8, 100.0, 80 * rng.random(n)), None

    def bounded(values: np.ndarray, groups: None) -> Interval:
        return mean_interval(values, groups=groups, bounds=(0.0, 100.0))

    assert covered(scores, 0.8 * 100 + 0.2 * 40, bounded) >= COVERED


@pytest.mark.parametrize("n", [5, 30])
def test_coverage_of_paired_differences(n):
    """Three quarters of the questions are ties, and neither model is better."""
    rng = np.random.default_rng(n)

    def way(values: np.ndarray, groups: None) -> Interval:
        return paired_difference(values, np.zeros_like(values), groups=groups, bounds=(-1.0, 1.0))

    chances = [1 / 8, 3 / 4, 1 / 8]
    assert covered(lambda: (rng.choice([-1.0, 0.0, 1.0], size=n, p=chances), None), 0.0, way) >= COVERED


def test_refusals():
    with pytest.raises(ValueError, match="differ in number"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
    with pytest.raises(ValueError, match="values have 1 groups"):
        mean_interval([1.0, 2.0], groups=["a"])
    with pytest.raises(ValueError, match="from 0 to 1"):
        proportion_interval([2.0])
