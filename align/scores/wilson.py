"""How sure a share is."""

from __future__ import annotations

from statistics import NormalDist

LEVEL = 0.95


def wilson(successes: float, n: float, *, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), both ends from 0 to 1.

    Args:
        successes: 0 … n.
        n: samples that know nothing of each other; above 0.
        level: coverage, 0 … 1.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
