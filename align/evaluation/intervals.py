"""How sure a mean is: intervals over what is independent, alone and paired."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from align.scores.wilson import LEVEL, wilson

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Interval:
    """A mean with its interval at level 0.95 (unless asked otherwise).

    Attributes:
        mean: over all samples.
        low, high: the interval; None where the samples cannot tell.
        n: samples.
        independent: how many of them know nothing of each other: one question asked at ten lengths counts once.
            0: as many as there are samples.
        why: where there is no interval, the reason.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    independent: int = 0
    why: str = ""

    def __str__(self) -> str:
        bounds = "no interval" if self.low is None else f"[{self.low:.3f}, {self.high:.3f}]"
        return f"{self.mean:.3f} {bounds}, n = {self.n}"


@dataclass(frozen=True)
class Score(Interval):
    """A suite's score.

    Attributes:
        better: which values are the better ones; None where neither is (words written).
    """

    better: Better | None = None


@dataclass(frozen=True)
class Measure:
    """What a suite declares of each of its scores: how its interval is made, and which values are better.

    `Measure(proportion_interval, "higher")` is an accuracy.
    """

    interval: Callable[..., Interval]
    better: Better | None

    def of(self, values: Sequence[float], groups: Sequence[Hashable] | None = None) -> Score:
        """The score of these samples; `groups` as in `mean_interval`."""
        return Score(**asdict(self.interval(values, groups=groups)), better=self.better)


def mean_interval(
    values: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] | None = None,
    level: float = LEVEL,
) -> Interval:
    """The mean of numbers, with Student's interval over independent groups.

    The variance is that of group totals around what the mean makes them expect (Cochran 1977, "Sampling Techniques",
    ratio estimator of clusters); t has one degree of freedom fewer than there are groups. Groups of one sample give the
    textbook interval.

    Where all values are alike nobody has seen any spread. If the quantity has bounds, the interval then reaches as far
    as the mean would move if others deviate, in the largest share of groups that G alike ones leave possible (Clopper
    and Pearson 1934, 0 of G). Without bounds there is none.

    Args:
        values: one number a sample; not empty.
        groups: what each sample belongs to, samples of one group not being independent; None: each to itself.
        bounds: least and greatest value that the quantity can have; None: unbounded.
        level: coverage, 0 … 1.

    Raises:
        ValueError: no values, or groups of another number.
    """
    data, totals, sizes = _grouped(values, groups)
    mean, count = float(data.mean()), len(totals)
    done = (int(data.size), count)
    if not math.isfinite(mean):
        return Interval(mean, None, None, *done, why="some values are no numbers")
    if np.ptp(data) == 0:
        return _alike(mean, bounds, *done, level=level)
    if count < 2:
        return Interval(
            mean, None, None, *done, why="all samples belong together, so that their spread is unknown"
        )
    half = _quantile(count, level) * math.sqrt(_variance(totals, sizes, mean))
    low, high = (-math.inf, math.inf) if bounds is None else bounds
    return Interval(mean, max(low, mean - half), min(high, mean + half), *done)


def proportion_interval(
    values: Sequence[float], *, groups: Sequence[Hashable] | None = None, level: float = LEVEL
) -> Interval:
    """A share of samples that are right (1) and not (0), with Wilson's score interval.

    Parts of a sample may be right (0.5): a value between 0 and 1 varies less than a coin of its mean, so that the
    interval is wide enough for it.

    With groups it is Wilson's for the effective number of samples: as many independent ones as would vary as little,
    fewer because their variance is estimated (Korn and Graubard 1998). Where all are right, or none, a group counts as
    one sample.

    Args:
        values: 0 … 1, one a sample; not empty.
        groups: see `mean_interval`.
        level: coverage, 0 … 1.

    Raises:
        ValueError: no values, or values that are no shares.
    """
    data, totals, sizes = _grouped(values, groups)
    if np.any((data < 0) | (data > 1)):
        raise ValueError("a proportion is made of values from 0 to 1")
    mean, count = float(data.mean()), len(totals)
    done = (int(data.size), count)
    if not math.isfinite(mean):
        return Interval(mean, None, None, *done, why="some values are no numbers")
    if count == data.size or mean in (0.0, 1.0):
        effective = float(count)
    elif count < 2:
        effective = 1.0
    else:
        variance = _variance(totals, sizes, mean)
        effective = min(data.size, mean * (1 - mean) / variance) if variance > 0 else float(data.size)
        effective *= (NormalDist().inv_cdf(0.5 + level / 2) / _quantile(count, level)) ** 2
    return Interval(mean, *wilson(mean * effective, effective, level=level), *done)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] | None = None,
    level: float = LEVEL,
) -> Interval:
    """The mean of `first − second` over the same samples: `mean_interval` of the differences.

    Args:
        first, second: scores of the same samples in the same order.
        groups: see `mean_interval`.
        bounds: of the difference: −1 and 1 for two shares.
        level: coverage, 0 … 1.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    if len(first) != len(second):
        raise ValueError(f"paired scores differ in number: {len(first)} and {len(second)}")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return mean_interval(differences.tolist(), groups=groups, bounds=bounds, level=level)


def _grouped(
    values: Sequence[float], groups: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values `[n]`, and each group's total and size `[G]`."""
    data = np.asarray(values, dtype=np.float64)
    if not data.size:
        raise ValueError("an interval needs at least one value")
    if groups is None:
        return data, data, np.ones_like(data)
    if len(groups) != data.size:
        raise ValueError(f"{data.size} values have {len(groups)} groups")
    places = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    own = np.array([places[name] for name in groups])
    return data, np.bincount(own, weights=data), np.bincount(own).astype(np.float64)


def _variance(totals: np.ndarray, sizes: np.ndarray, mean: float) -> float:
    """Of the mean, from how group totals scatter around what it makes them expect."""
    count = len(totals)
    residuals = totals - mean * sizes
    return float(count / (count - 1) * (residuals**2).sum() / sizes.sum() ** 2)


def _quantile(groups: int, level: float) -> float:
    """Student's t with `groups` − 1 degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, groups - 1))


def _alike(mean: float, bounds: tuple[float, float] | None, n: int, groups: int, *, level: float) -> Interval:
    """The interval of values without any spread."""
    if bounds is None:
        why = "one sample has no spread" if n == 1 else f"all {n} values are alike"
        return Interval(mean, None, None, n, groups, why)
    deviating = 1 - ((1 - level) / 2) ** (1 / groups)
    low, high = bounds
    return Interval(mean, mean - deviating * (mean - low), mean + deviating * (high - mean), n, groups)
