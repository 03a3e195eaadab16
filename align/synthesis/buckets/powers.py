"""Dataset Decomposition: a document's tokens as powers of two."""

from __future__ import annotations

import numpy as np


def powers_of(
    tokens: int, *, least: int, most: int, rng: np.random.Generator | None = None
) -> tuple[list[int], int]:
    """The powers k of the rows that a document is cut into, each of 2^k + 1 tokens, and how many tokens are left.

    A row is 2^k tokens and the one that the last of them predicts. The largest power that fits is taken again and
    again: 1,000 tokens with powers from 6 to 8 are 8, 8, 8, 7, 6, and 35 tokens are left; from 8 to 13 they are 9, 8,
    and 230 are left.

    Args:
        tokens: of the document.
        least: the smallest power; what is too short for it is left.
        most: the largest one.
        rng: draws a power where a larger one than `most` would fit, with the odds of `odds_of`; None takes `most`.
    """
    found, choices = [], np.arange(most, least - 1, -1)
    odds = odds_of(least=least, most=most)
    while tokens > 1:
        power = (tokens - 1).bit_length() - 1
        if power < least:
            break
        if power > most:
            power = most
            if rng is not None:
                power = int(rng.choice(choices, p=odds))
        found.append(power)
        tokens -= 2**power + 1
    return found, tokens


def odds_of(*, least: int, most: int) -> np.ndarray:
    """`[most − least + 1]` odds of the powers most … least, ∝ 2^(most − k): as many tokens of each length.

    Of 8 and 7: 1/3 and 2/3.
    """
    weights = 2.0 ** np.arange(most - least + 1)
    return np.asarray(weights / weights.sum())
