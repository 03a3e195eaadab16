"""`data.mix`: training rows from several places, in fixed proportions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset, concatenate_datasets

from align.core.errors import UserError
from align.core.readable import counted

if TYPE_CHECKING:
    from align.data.settings import MixedSettings


@dataclass(frozen=True)
class Ingredient:
    """One place that the training rows come from: `Ingredient("chat.jsonl", 20, 500)` gave 20 of its 500 rows.

    Attributes:
        path: as it was named.
        rows: how many of its rows are trained on.
        available: how many it holds (of `data.path` those that are not held out).
    """

    path: str
    rows: int
    available: int


def mix(
    base: Dataset, path: str, others: Sequence[tuple[MixedSettings, Dataset]], *, seed: int
) -> tuple[Dataset, tuple[Ingredient, ...]]:
    """All rows of `base`, then of each other place `ratio · len(base)` rows, drawn without repetition.

    1,000 rows of `data.path` and one entry of `data.mix` with ratio 0.2 are 1,200 rows.

    What a place contributes follows from the seed and its place in the list alone, so that a resumed run and
    every process draw the same rows. The trainer shuffles them.

    Args:
        base: training rows of `data.path`.
        path: `data.path`, for messages.
        others: entries of `data.mix` with their rows, of the same columns.
        seed: of the draw.

    Returns:
        the rows, and what each place has given, `data.path` first.

    Raises:
        UserError: a place has too few rows for its ratio, or a ratio asks for less than one row.
    """
    datasets, ingredients = [base], [Ingredient(path, len(base), len(base))]
    for i, (entry, rows) in enumerate(others):
        wanted = round(entry.ratio * len(base))
        _check(i, entry, wanted, base=len(base), available=len(rows))
        drawn = np.random.default_rng((seed, i)).permutation(len(rows))[:wanted]
        datasets.append(rows.select(np.sort(drawn)))
        ingredients.append(Ingredient(entry.path, wanted, len(rows)))
    return concatenate_datasets(datasets).with_format("numpy"), tuple(ingredients)


def _check(i: int, entry: MixedSettings, wanted: int, *, base: int, available: int) -> None:
    asks = (
        f"data.mix[{i}].ratio={entry.ratio:g} for {counted(base, 'training row')} of data.path asks for "
        f"{counted(wanted, 'row')}"
    )
    if wanted < 1:
        raise UserError(f"{asks} of {entry.path}: set at least {1 / base:.3g}.")
    if wanted > available:
        # Rounded down, so that the ratio that is named works.
        most = int(available / base * 1e4) / 1e4
        raise UserError(
            f"{asks} of {entry.path}, which holds {available}: set {most:g} or less, or add rows."
        )
