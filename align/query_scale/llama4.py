"""Llama-4's form of the scale, which grows by a step whenever the position passes a multiple of the window.

As the library's Ministral3 and Mistral4 have it in every layer (`get_llama_4_attn_scale`). Llama-4 itself counts
positions from 1 and scales its layers without rotary embedding alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.query_scale.values import above_zero, window_within

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Llama4:
    """Factor 1 + beta · ln(1 + ⌊p / window⌋), p the position counted from 0.

    With beta 0.1 and a window of 4,096 the token at position 4,095 has 1, that at 16,383 1.1386.

    Attributes:
        beta: how fast it grows.
        window: tokens up to which it is 1; None is the checkpoint's window.
    """

    beta: float = 0.1
    window: int | None = None

    def check(self) -> None:
        """Raises UserError for a beta that is not above 0, or a window of no tokens."""
        above_zero("beta", self.beta)
        window_within(self.window, least=1)

    def scale(self, positions: Tensor, layer: int) -> Tensor | None:
        """`[B, T]` of positions `[B, T]`, from 1 on."""
        if self.window is None:
            return None
        return 1 + self.beta * (1 + (positions / self.window).floor()).log()

    def words(self) -> str:
        """The formula."""
        return f"1 + {self.beta:g} · ln(1 + floor(p / {self.window}))"
