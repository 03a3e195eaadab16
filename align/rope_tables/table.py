"""What a table of rotary frequencies is: `Table`, and what it is told of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class RopeContext:
    """The rotary embedding that a table is made for.

    Attributes:
        dim: d, rotary dimensions of a head; its whole width, or the share `partial_rotary_factor` of it.
        theta: the base, of the checkpoint or `model.rope.theta`.
        window: tokens of the pre-training window, as far as the checkpoint tells.
    """

    dim: int
    theta: float
    window: int


class Table(Protocol):
    """`model.rope.table`: a frozen dataclass whose fields are the keys beside its `_target_`.

    With d = 4 and θ = 10⁴ the plain frequencies are [1, 0.01]; a table that halves them gives [0.5, 0.005], and a
    head's second pair of dimensions then turns by 0.005 radians a token.
    """

    def check(self) -> None:
        """Raises UserError where a key is out of range or a file is missing; reads no model, imports no torch."""

    def frequencies(self, plain: np.ndarray, context: RopeContext) -> np.ndarray:
        """The frequencies `[d/2]`, radians a position, from 0 on; 0 stands for a pair that does not turn.

        Args:
            plain: θ^(−2i/d), i = 0 … d/2 − 1, in float64, `[d/2]`.
            context: of the model.
        """
