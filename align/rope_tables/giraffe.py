"""Giraffe's bases (arXiv 2308.10882): scaled, lowered by a power, truncated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from align.core.errors import UserError
from align.rope_tables.table import RopeContext

_LOWERED = 8.0  # truncation lowers what lies within this factor below the edge …
_FLOOR = 16.0  # … to the edge divided by this one; both are fixed numbers of the released code


@dataclass(frozen=True)
class Giraffe:
    """`model/rope=truncated` and `model/rope=power`; hydra_conf/model/rope/truncated.yaml.

    In the order of the released code, each on what the one before has left:

        scale       θ_i / scale
        power       θ_i · (1 − 2i/d)^power
        truncation  with b = 2π / length:  θ_i from b on,  b / 16 from b / 8 on,  0 below

    so that d = 8 and θ = 10⁴ with power 0.5 give [1, 0.08660254, 0.00707107, 0.0005].

    Attributes:
        scale: from 1 on; 1 leaves the frequencies as they are.
        power: κ, from 0 on; 0 leaves them.
        length: Λ, tokens; a pair of dimensions that takes longer for one turn is lowered or stopped. None: no
            truncation.
    """

    scale: float = 1.0
    power: float = 0.0
    length: int | None = None

    def check(self) -> None:
        """Raises UserError for a number out of range, and where nothing would change."""
        if not 1 <= self.scale < math.inf:
            raise UserError(
                f"model.rope.table.scale={self.scale} has to be 1 or more: frequencies are divided by it."
            )
        if not 0 <= self.power < math.inf:
            raise UserError(
                f"model.rope.table.power={self.power} has to be 0 or more: it lowers the low frequencies."
            )
        if self.length is not None and self.length < 1:
            raise UserError(f"model.rope.table.length={self.length} is no number of tokens: give 2048, say.")
        if self.scale == 1 and self.power == 0 and self.length is None:
            raise UserError(
                "model.rope.table changes no frequency: set its length (truncation), power or scale, or leave "
                "model/rope out."
            )

    def frequencies(self, plain: np.ndarray, context: RopeContext) -> np.ndarray:
        """See `Table.frequencies`."""
        found = plain / self.scale * (1 - np.arange(len(plain)) / len(plain)) ** self.power
        if self.length is None:
            return found
        edge = 2 * math.pi / self.length
        return np.where(found >= edge, found, np.where(found >= edge / _LOWERED, edge / _FLOOR, 0.0))
