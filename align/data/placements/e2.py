"""E²-LLM's positions: short rows at a random scale and offset, for any longer window (arXiv 2401.06951).

The paper reads token m at the real position (m + t) / g: g says how densely positions are interpolated, t where in the
window the row stands, and the first tokens keep t = 0. Here positions are integers of a model whose linear RoPE divides
them by F, and g divides F:

    F = 20, g = 4, t = 10:   0  5 10 15 70 75 80 85    steps of F/g = 5, an offset of t · F/g = 50
    which the model reads as 0 .25 .5 .75 3.5 3.75 4 4.25

A trained model reads a window g times its first one with `factor` lowered from F to g in its configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from align.core.errors import UserError
from align.data.placements.bounds import check_target
from align.data.positions import Placed

if TYPE_CHECKING:
    from align.data.positions import PromptParts
    from align.models.reach import Reach


@dataclass(frozen=True)
class E2:
    """`positions=e2`; hydra_conf/positions/e2.yaml.

    The scale is drawn from those that the row fits at, g · L ≥ its tokens: the paper does not say what becomes of rows
    that are longer than the window L. The offset is uniform over 0 … g · L − tokens, as in the paper. A prompt of
    `keep_first` tokens or fewer has no offset, since the answers go on by the step.

    Attributes:
        target_length: K = F · L; None: F times the tokens that the checkpoint was made for.
        factor: F, of the model's linear RoPE.
        scales: g to draw from, divisors of F; None is all of them.
        keep_first: tokens that keep offset 0.
    """

    target_length: int | None = None
    factor: int = 20
    scales: list[int] | None = None
    keep_first: int = 4

    def check(self) -> None:
        """See `Placement.check`."""
        if self.target_length is not None:
            check_target(self.target_length)
        if self.factor < 1:
            raise UserError(f"positions.factor={self.factor} is too small: give a whole number from 1 on.")
        if self.keep_first < 0:
            raise UserError(f"positions.keep_first={self.keep_first} is negative: give 0 or more.")
        if self.scales is not None and not self.scales:
            raise UserError("positions.scales is empty: give divisors of positions.factor, or null for all.")
        for scale in self.scales or ():
            if scale < 1 or self.factor % scale:
                divisors = ", ".join(map(str, _divisors(self.factor)))
                raise UserError(
                    f"positions.scales has {scale}, which does not divide positions.factor={self.factor}: take some of "
                    f"{divisors}."
                )

    def fitted(self, reach: Reach) -> E2:
        """With K from the model.

        Raises:
            UserError: its RoPE is not linear with this factor, it scales queries by such positions, or nothing says
                how long its window is.
        """
        if reach.factor != self.factor:
            has = "another RoPE" if reach.factor is None else f"a factor of {reach.factor:g}"
            raise UserError(
                f"positions=e2 takes a linear RoPE that divides positions by positions.factor={self.factor}, and the "
                f"model has {has}: set model.rope.type=linear model.rope.factor={self.factor}."
            )
        if reach.scaled:
            raise UserError(
                "positions=e2 counts in parts of a token, and model.query_scale would take them for tokens: leave out "
                "one of them."
            )
        if self.target_length is not None:
            return self
        if reach.window is None:
            raise UserError(
                "positions=e2: the model's configuration does not say how many tokens it was made for: set "
                "positions.target_length to positions.factor times that."
            )
        found = replace(self, target_length=self.factor * reach.window)
        found.check()
        return found

    def place(self, parts: PromptParts, rng: np.random.Generator) -> Placed:
        """See `Placement.place`."""
        if self.target_length is None:
            raise ValueError("E2 has no target_length: call fitted() first")
        rooms = {scale: self._most(scale) - parts.length for scale in self.scales or _divisors(self.factor)}
        fitting = [scale for scale, room in rooms.items() if room >= 0]
        if not fitting:
            longest = max(map(self._most, rooms))
            raise UserError(
                f"the prompt and its longest answer have {parts.length} tokens, and at the largest of positions.scales "
                f"{longest} fit into positions.target_length={self.target_length}; lower data.max_length"
            )
        scale = fitting[int(rng.integers(len(fitting)))]
        offset = int(rng.integers(rooms[scale] + 1))
        step = self.factor // scale
        return Placed(scaled(parts.tokens, step=step, offset=offset, keep_first=self.keep_first), step)

    def _most(self, scale: int) -> int:
        """g · L: tokens that fit into K at a scale: 64 at 4 into K = 320 with F = 20."""
        assert self.target_length is not None
        return 1 + (self.target_length - 1) // (self.factor // scale)


def scaled(tokens: int, *, step: int, offset: int, keep_first: int) -> np.ndarray:
    """`[tokens]` int64: step · (m + offset), without the offset for the first `keep_first` tokens.

    Args:
        tokens: P.
        step: F/g.
        offset: t, in tokens.
        keep_first: see `E2`.
    """
    places = np.arange(tokens)
    places[keep_first:] += offset
    return places * step


def _divisors(number: int) -> list[int]:
    """1, 2, 4, 5, 10 and 20 of 20."""
    return [one for one in range(1, number + 1) if number % one == 0]
