"""`data.mix`: training rows from several places, in fixed proportions of rows or of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset, concatenate_datasets

from align.core.errors import UserError
from align.core.readable import counted
from align.data.totals import column_of

if TYPE_CHECKING:
    from align.data.settings import MixedSettings


@dataclass(frozen=True)
class Ingredient:
    """One place that training rows come from: `Ingredient("chat.jsonl", 20, 500, 30_000)` gave 20 of its 500 rows.

    Attributes:
        path: as it was named.
        rows: how many of its rows are trained on.
        available: how many it holds (of `data.path` those that are not held out).
        tokens: that the model reads of those that are trained on, a prompt once and every answer.
    """

    path: str
    rows: int
    available: int
    tokens: int


def mix(
    base: Dataset, path: str, others: Sequence[tuple[MixedSettings, Dataset]], *, seed: int
) -> tuple[Dataset, tuple[Ingredient, ...]]:
    """All rows of `base`, then of each other place as many as its ratio or share asks for, drawn without repetition.

    1,000 rows of `data.path` and one entry of `data.mix` with ratio 0.2 are 1,200 rows. Beside 100 rows of 60,000
    tokens an entry with share 0.4 gives 4,000,000 tokens, 2,667 rows of 1,500 (2,666.67 rounded).

    What a place contributes follows from the seed and its place in the list alone, so that a resumed run and
    every process draw the same rows. The trainer shuffles them.

    Args:
        base: training rows of `data.path`.
        path: `data.path`, for messages.
        others: entries of `data.mix` with their rows, of the same columns; all with a ratio, or all with a share.
        seed: of the draw.

    Returns:
        the rows, and what each place has given, `data.path` first.

    Raises:
        UserError: a place has too few rows or tokens, or is asked for less than one row.
    """
    shares = [entry.share or 0.0 for entry, _ in others]
    tokens = _tokens_of(base)
    datasets, ingredients = [base], [Ingredient(path, len(base), len(base), int(tokens.sum()))]
    for i, (entry, rows) in enumerate(others):
        drawn = np.random.default_rng((seed, i)).permutation(len(rows))
        lengths = _tokens_of(rows)
        if entry.ratio is not None:
            taken = _rows_of_ratio(i, entry.path, entry.ratio, base=len(base), available=len(rows))
        else:
            taken = _rows_of_share(i, entry.path, shares, base=int(tokens.sum()), lengths=lengths[drawn])
        kept = np.sort(drawn[:taken])
        datasets.append(rows.select(kept))
        ingredients.append(Ingredient(entry.path, taken, len(rows), int(lengths[kept].sum())))
    return concatenate_datasets(datasets).with_format("numpy"), tuple(ingredients)


def mixture_words(ingredients: Sequence[Ingredient]) -> list[str]:
    """One sentence on what every place gives to a mixture; none where nothing is mixed."""
    if not ingredients:
        return []
    whole = sum(one.tokens for one in ingredients)
    said = ", ".join(
        f"{one.path} {one.tokens / whole:.1%} ({counted(one.tokens, 'token')}, {one.rows} of "
        f"{counted(one.available, 'row')})"
        for one in ingredients
    )
    return [f"Mixed by data.mix, shares of the {counted(whole, 'token')} to train on: {said}."]


def _tokens_of(rows: Dataset) -> np.ndarray:
    """`[n]` tokens that the model reads of each row."""
    return column_of(rows, "num_tokens").to_numpy(zero_copy_only=False).astype(np.int64)


def _rows_of_ratio(i: int, path: str, ratio: float, *, base: int, available: int) -> int:
    """How many rows a ratio asks for.

    Raises:
        UserError: none, or more than there are.
    """
    wanted = round(ratio * base)
    asks = (
        f"data.mix[{i}].ratio={ratio:g} for {counted(base, 'training row')} of data.path asks for "
        f"{counted(wanted, 'row')}"
    )
    if wanted < 1:
        raise UserError(f"{asks} of {path}: set at least {1 / base:.3g}.")
    if wanted > available:
        raise UserError(
            f"{asks} of {path}, which holds {available}: set {_down(available / base):g} or less, or add rows."
        )
    return wanted


def _rows_of_share(i: int, path: str, shares: Sequence[float], *, base: int, lengths: np.ndarray) -> int:
    """How many rows, in the order of the draw, come nearest to the tokens that a share asks for.

    Beside 600 tokens of `data.path` and another share of 0.3, a share of 0.1 is 0.1 / 0.6 · 600 = 100 tokens; of rows
    of 40, 50, 30 … tokens those are the first two (90 is nearer to 100 than 120 is).

    Args:
        i: its number in `data.mix`.
        path: the place.
        shares: of all entries; `data.path` has the rest.
        base: tokens of `data.path`.
        lengths: `[n]` tokens of the place's rows, in the order of the draw.

    Raises:
        UserError: the place has fewer tokens, or its first row is more than twice as long as what is asked for.
    """
    share, others = shares[i], math.fsum(shares) - shares[i]
    wanted = share * base / (1 - others - share)
    held = int(lengths.sum())
    asks = (
        f"data.mix[{i}].share={share:g} beside {counted(base, 'token')} of data.path asks for "
        f"{counted(round(wanted), 'token')}"
    )
    if round(wanted) > held:
        # Rounded down, so that the share that is named works.
        most = _down(held * (1 - others) / (base + held))
        raise UserError(
            f"{asks} of {path}, which holds {held}, and no row is taken twice: set {most:g} or less, add rows, or read "
            "fewer of data.path (data.limit)."
        )
    sums = np.concatenate([[0], np.cumsum(lengths)])
    after = min(int(np.searchsorted(sums, wanted)), len(lengths))
    before = max(after - 1, 0)
    taken = before if wanted - sums[before] <= sums[after] - wanted else after
    if taken == 0:
        raise UserError(
            f"{asks} of {path}, less than half of the first row that is drawn ({counted(int(lengths[0]), 'token')}): "
            "raise the share, or leave the place out."
        )
    return taken


def _down(value: float) -> float:
    """Rounded down to four places, so that what a message names works."""
    return int(value * 1e4) / 1e4
