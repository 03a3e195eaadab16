"""NTK-aware scaling at one factor: another base, chosen so that the lowest frequency is divided by the factor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from align.core.errors import UserError
from align.rope_tables.table import RopeContext


@dataclass(frozen=True)
class Ntk:
    """`model/rope=ntk`; hydra_conf/model/rope/ntk.yaml.

        θ_i · factor^(−2i / (d − 2)),

    which is plain RoPE with the base θ · factor^(d / (d − 2)): the highest frequency stays, the lowest is divided by
    the factor. d = 8, θ = 10⁴ and factor 3 give [1, 0.06933613, 0.00480750, 0.00033333]. `model.rope.theta` with that
    base is the same; so is `model.rope.type=dynamic` with factor s at n windows, for a factor of s·n − (s − 1) here.

    Attributes:
        factor: how many times longer the lowest frequency's wave becomes, from 1 on.
    """

    factor: float = 4.0

    def check(self) -> None:
        """Raises UserError for a factor below 1."""
        if not 1 <= self.factor < math.inf:
            raise UserError(
                f"model.rope.table.factor={self.factor} has to be 1 or more: it stretches the lowest frequency's wave."
            )

    def frequencies(self, plain: np.ndarray, context: RopeContext) -> np.ndarray:
        """See `Table.frequencies`."""
        check_pairs(context)
        return plain * self.factor ** (-2 * np.arange(len(plain)) / (context.dim - 2))


def check_pairs(context: RopeContext) -> None:
    """Refuses a head of one rotary pair, whose lowest frequency is its highest."""
    if context.dim <= 2:
        raise UserError(
            f"model.rope.table: this model rotates {context.dim} dimensions of a head, and NTK-aware scaling needs 4 "
            "or more: take another table."
        )
