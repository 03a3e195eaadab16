"""The bias to length of Self-Lengthen (arXiv 2410.23933, released `drop_short`): short answers stay less often."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align.core.errors import UserError
from align.generation.generators import derive_seed
from align.synthesis.selection.select import Score, check_keep, read_texts

if TYPE_CHECKING:
    from align.generation.stage import Workspace

_BITS = 63  # of a derived seed


@dataclass(frozen=True)
class Survival:
    """`select=survival`; hydra_conf/select/survival.yaml comments every key.

    Attributes:
        factor: of r³, where r is 1 for the shortest answer and 1/n for the longest of n.
        keep: see `Selector`.
    """

    factor: float = 2.0
    keep: float | None = None

    @property
    def name(self) -> str:
        """Name and parameters."""
        return f"survival(factor={self.factor:g})"

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        check_keep(self.keep)
        if not 0 <= self.factor < float("inf"):
            raise UserError(f"select.factor={self.factor} must be 0 (all rows stay) or more.")

    def scores(self, path: Path, workspace: Workspace) -> list[Score]:
        """Characters of each chosen answer, all turns together; None of a row whose draw is against it.

        A row's draw hangs on the run's seed and the row's place alone.
        """
        lengths = [sum(len(turn.chosen) for turn in example.turns) for _, example in read_texts(path)]
        order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
        chances = dict(zip(order, survival_chances(len(order), factor=self.factor), strict=True))
        return [
            self._score(length, chances[i], _uniform(workspace.seed, i)) for i, length in enumerate(lengths)
        ]

    def _score(self, length: int, chance: float, drawn: float) -> Score:
        stays = drawn < chance
        said = "stays" if stays else "is dropped"
        why = f"{length} characters, which stay with a chance of {chance:.3f}: it {said} at {drawn:.3f}"
        return Score(float(length) if stays else None, why, {"chance": chance, "drawn": drawn})


def survival_chances(count: int, *, factor: float) -> list[float]:
    """The chance of each of `count` answers to stay, the shortest first: 1 − factor·r³, 0 at least.

    With the factor 2 and ten answers it is 0, 0, 0, 0.314, 0.568, 0.75, 0.872, 0.946, 0.984, 0.998.
    """
    return [max(0.0, 1 - factor * (1 - i / count) ** 3) for i in range(count)]


def _uniform(seed: int, place: int) -> float:
    """A number in [0, 1)."""
    return derive_seed(seed, "survival", str(place)) / 2**_BITS
