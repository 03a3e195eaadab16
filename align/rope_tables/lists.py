"""Tables that are lists already: frequencies, and the factors that LongRoPE's search divides them by."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from align.core.errors import UserError
from align.rope_tables.table import RopeContext


@dataclass(frozen=True)
class Frequencies:
    """`model/rope=frequencies`; hydra_conf/model/rope/frequencies.yaml.

    Attributes:
        path: a JSON file that holds one list; None where `values` gives it.
        values: d/2 frequencies, radians a position, from 0 on, highest first as RoPE has them.
    """

    path: str | None = None
    values: list[float] = field(default_factory=list)

    def check(self) -> None:
        """Raises UserError where the list is missing, is no list of numbers, or has one below 0."""
        _check_numbers(self._list(), least="from 0 on")

    def frequencies(self, plain: np.ndarray, context: RopeContext) -> np.ndarray:
        """See `Table.frequencies`."""
        return _fitting(self._list(), plain)

    def _list(self) -> list[Any]:
        return _given(self.path, self.values, key=None)


@dataclass(frozen=True)
class Factors:
    """`model/rope=factors`: LongRoPE's searched factors (arXiv 2402.13753); hydra_conf/model/rope/factors.yaml.

        θ_i / λ_i

    for every row, long or short; LongRoPE's first tokens that keep their positions are left out.

    Attributes:
        path: a JSON file that holds one list, or an object with the list under `key`, at its top or in its
            `rope_scaling` or `rope_parameters` (a checkpoint's config.json); or the search's CSV, which has a line for
            each layer. None where `values` gives it.
        values: λ, d/2 numbers above 0.
        key: of an object: `long_factor`, `short_factor`.
    """

    path: str | None = None
    values: list[float] = field(default_factory=list)
    key: str = "long_factor"

    def check(self) -> None:
        """Raises UserError where the list is missing, is no list of numbers, or has one that is not above 0."""
        _check_numbers(self._list(), least="above 0")

    def frequencies(self, plain: np.ndarray, context: RopeContext) -> np.ndarray:
        """See `Table.frequencies`."""
        return plain / _fitting(self._list(), plain)

    def _list(self) -> list[Any]:
        return _given(self.path, self.values, key=self.key)


def _given(path: str | None, values: Sequence[float], *, key: str | None) -> list[Any]:
    """The one list of the two places that it can be in."""
    if (path is None) == (not values):
        raise UserError(
            "model.rope.table takes its numbers from one place: set model.rope.table.path=FILE or "
            "model.rope.table.values=[…]."
        )
    return list(values) if path is None else _read(Path(path), key)


def _read(path: Path, key: str | None) -> list[Any]:
    """The list in a file.

    Args:
        path: JSON, or CSV where `key` names what an object is searched for.
        key: None where the file is the list itself.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model.rope.table.path={path} is no file that can be read: name one.") from error
    if key is not None and path.suffix == ".csv":
        return _first_line(text, path)
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"model.rope.table.path={path} cannot be read as JSON: correct it.") from error
    if key is not None and isinstance(found, dict):
        places = [found, *(found.get(name) for name in ("rope_scaling", "rope_parameters"))]
        found = next((place[key] for place in places if isinstance(place, dict) and key in place), None)
    if not isinstance(found, list):
        wanted = "a list" if key is None else f"a list, or an object with a list {key}"
        raise UserError(f"model.rope.table.path={path} has to hold {wanted}.")
    return found


def _first_line(text: str, path: Path) -> list[Any]:
    """The numbers of a CSV file whose lines, one a layer, all say the same."""
    lines = {line.strip() for line in text.splitlines() if line.strip()}
    if len(lines) != 1:
        raise UserError(
            f"model.rope.table.path={path} has {len(lines)} unlike lines: one table holds for all layers."
        )
    try:
        return [float(number) for number in lines.pop().split(",")]
    except ValueError as error:
        raise UserError(f"model.rope.table.path={path} has to hold numbers between commas.") from error


def _check_numbers(numbers: Sequence[Any], *, least: str) -> None:
    """Refuses what no list of frequencies or factors holds; `least` is `from 0 on` or `above 0`."""
    for i, number in enumerate(numbers):
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not (is_number and 0 <= number < math.inf) or (number == 0 and least == "above 0"):
            raise UserError(f"model.rope.table: number {i + 1} of its list is {number}; give one {least}.")


def _fitting(numbers: Sequence[float], plain: np.ndarray) -> np.ndarray:
    """The list as an array, as long as the model's own."""
    if len(numbers) != len(plain):
        raise UserError(
            f"model.rope.table has {len(numbers)} numbers, and this model's heads rotate {2 * len(plain)} dimensions, "
            f"which need {len(plain)}: take the list of the same model."
        )
    return np.array(numbers, dtype=np.float64)
