"""Entropy-aware ABF's scale: queries beyond the window of pre-training grow with the logarithm of their position.

"Extending Context Windows of Large Language Models with 100 Samples" (arXiv 2401.07004), equation 5. The entropy of
attention stays as it is at the window's end, but for the first two layers, whose entropy grows by itself and which are
left alone. The authors' code scales these too, since no forward reads what it sets for them (GAIR-NLP/Entropy-ABF,
patch/EABF.py), and rounds the factor to bfloat16: here it is computed in float32 or more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.query_scale.values import at_least, window_within

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LogLength:
    """Factor max(1, ln i / ln window), i the position counted from 1.

    With a window of 4,096 the token at position 4,095 has 1, that at 8,191 1.0833, that at 32,767 1.25.

    Attributes:
        window: tokens of the window of pre-training; None is the checkpoint's.
        skip_layers: the first layers that are left alone.
    """

    window: int | None = None
    skip_layers: int = 2

    def check(self) -> None:
        """Raises UserError for a window of less than two tokens, or a negative number of layers."""
        window_within(self.window, least=2)
        at_least("skip_layers", self.skip_layers, 0)

    def scale(self, positions: Tensor, layer: int) -> Tensor | None:
        """`[B, T]` of positions `[B, T]`, from 1 on; None in the layers that are left alone."""
        if layer < self.skip_layers or self.window is None:
            return None
        return ((positions + 1).log() / math.log(self.window)).clamp(min=1)

    def words(self) -> str:
        """The formula."""
        layers = f" in layers from {self.skip_layers} on" if self.skip_layers else ""
        return f"max(1, ln(p + 1) / ln {self.window}){layers}"
