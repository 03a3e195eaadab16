"""One factor for all positions: a temperature of attention, as YaRN has one, without another rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.query_scale.values import above_zero, at_least

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Constant:
    """The factor `value`; 1.2965 is what YaRN multiplies scores by where it makes a window four times as long.

    Attributes:
        value: what queries are multiplied by.
        skip_layers: the first layers that are left alone.
    """

    value: float
    skip_layers: int = 0

    def check(self) -> None:
        """Raises UserError for a factor that is not above 0, or a negative number of layers."""
        above_zero("value", self.value)
        at_least("skip_layers", self.skip_layers, 0)

    def scale(self, positions: Tensor, layer: int) -> Tensor | None:
        """`[B, T]` of positions `[B, T]`, the same everywhere; None in the layers that are left alone."""
        return None if layer < self.skip_layers else positions.new_full(positions.shape, self.value)

    def words(self) -> str:
        """The formula."""
        layers = f" in layers from {self.skip_layers} on" if self.skip_layers else ""
        return f"{self.value:g}{layers}"
