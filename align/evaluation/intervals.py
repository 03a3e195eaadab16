"""How sure a mean is: bootstrap intervals, alone and paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over `n` samples with its interval at level 0.95 (unless asked otherwise)."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n}"


def mean_interval(
    values: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of independent samples and its percentile bootstrap interval (Efron and Tibshirani 1993, ch. 13).

    Where every value is 0 or every value is 1 the bootstrap knows no spread; the interval is then Wilson's
    score interval, which does.

    Args:
        values: one number a sample; not empty.
        level: coverage, 0 … 1.
        resamples: draws with replacement.
        seed: of the draws.

    Raises:
        ValueError: no values.
    """
    data = np.asarray(values, dtype=np.float64)
    if not data.size:
        raise ValueError("an interval needs at least one value")
    mean = float(data.mean())
    if mean in (0.0, 1.0) and set(np.unique(data)) <= {0.0, 1.0}:
        low, high = wilson(int(data.sum()), data.size, level=level)
    else:
        low, high = _percentiles(_resampled_means(data, resamples, seed), level)
    return Interval(mean, low, high, int(data.size))


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of `first − second` over the same samples, by a paired bootstrap: samples are drawn, not scores.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    if len(first) != len(second):
        raise ValueError(f"paired scores differ in number: {len(first)} and {len(second)}")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if not differences.size:
        raise ValueError("an interval needs at least one value")
    low, high = _percentiles(_resampled_means(differences, resamples, seed), level)
    return Interval(float(differences.mean()), low, high, int(differences.size))


def wilson(successes: int, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927)."""
    from statistics import NormalDist

    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _resampled_means(data: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """`[resamples]`: means of as many draws with replacement, in blocks that stay small."""
    rng = np.random.default_rng(seed)
    block = max(1, 2_000_000 // data.size)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([data[rng.integers(0, data.size, (size, data.size))].mean(1) for size in sizes])


def _percentiles(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
