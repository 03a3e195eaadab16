"""The choices of the group `attention`: all layers alike, halves of the heads, or some layers full."""

from __future__ import annotations

from dataclasses import dataclass

from align.core.config import check_choice
from align.core.errors import UserError
from align.patterns.by_head import ByHead
from align.patterns.layers import SAME, check_evaluate
from align.patterns.pattern import FULL, Chunked, Pattern, Window

MIDDLE_THIRD = "middle_third"  # of `attention.full_layers`


@dataclass(frozen=True)
class EveryFull:
    """Full attention in every layer, whatever the checkpoint says of an earlier training (attention=full)."""

    evaluate: str = SAME

    def check(self) -> None:
        """See `LayerPatterns`."""
        check_evaluate(self.evaluate)

    def fit(self, *, layers: int) -> None:
        """For any model."""

    def at(self, layer: int, *, layers: int, heads: int) -> Pattern:
        """Full."""
        return FULL


@dataclass(frozen=True)
class EveryWindow:
    """In every layer the last `window` tokens and the first `sinks` (attention=window, attention=sink_window).

    Attributes:
        window: tokens, the token itself among them.
        sinks: first tokens that every token sees.
        limit: positions that first tokens outside the window are away at most, in evaluation alone (LM-Infinite's
            distance limit): they are read as if they stood there. None: as far as they are.
        evaluate: see `LayerPatterns`.
    """

    window: int
    sinks: int = 0
    limit: int | None = None
    evaluate: str = SAME

    def check(self) -> None:
        """See `LayerPatterns`."""
        check_evaluate(self.evaluate)
        _positive("window", self.window)
        _not_negative("sinks", self.sinks)
        if self.limit is not None:
            _positive("limit", self.limit)
            if not self.sinks:
                raise UserError(
                    "attention.limit is how far away first tokens are read, and attention.sinks=0 has none: set it, 10."
                )

    def fit(self, *, layers: int) -> None:
        """For any model."""

    def at(self, layer: int, *, layers: int, heads: int) -> Pattern:
        """The same window for all."""
        return Window(self.window, self.sinks)


@dataclass(frozen=True)
class Shifted:
    """Groups of tokens, shifted by half a group in the second half of the heads (S²-Attn, LongLoRA, arXiv 2309.12307).

    The first H // 2 heads see groups [0, G), [G, 2G), …, the others [0, G // 2), [G // 2, G // 2 + G), …, and all of
    them the first `sinks` tokens (SinkLoRA's idea, arXiv 2406.05678, as far as it is causal). A group is a number of
    tokens and not a share of the row, so that an answer's log-prob does not depend on what it is packed with.
    """

    group: int
    sinks: int = 0
    evaluate: str = SAME

    def check(self) -> None:
        """See `LayerPatterns`."""
        check_evaluate(self.evaluate)
        if self.group < 2:
            raise UserError(f"attention.group={self.group} has to be a number of tokens, from 2 on.")
        _not_negative("sinks", self.sinks)

    def fit(self, *, layers: int) -> None:
        """For any model."""

    def at(self, layer: int, *, layers: int, heads: int) -> Pattern | ByHead:
        """Halves of the heads; a single head is not shifted."""
        plain = Chunked(self.group, sinks=self.sinks)
        if heads == 1:
            return plain
        shifted = Chunked(self.group, shift=self.group // 2, sinks=self.sinks)
        return ByHead((((0, heads // 2), plain), ((heads // 2, heads), shifted)))


@dataclass(frozen=True)
class Hybrid:
    """Full attention in some layers, another pattern in the others (LongGen, arXiv 2410.01485).

    Attributes:
        others: the pattern of the layers that are not full.
        full_layers: `middle_third` of the layers, or their numbers, from 0 on.
        evaluate: see `LayerPatterns`.
    """

    others: Pattern
    full_layers: str | list[int] = MIDDLE_THIRD
    evaluate: str = SAME

    def check(self) -> None:
        """See `LayerPatterns`."""
        check_evaluate(self.evaluate)
        self.others.check()
        if isinstance(self.full_layers, str):
            check_choice("attention.full_layers", self.full_layers, (MIDDLE_THIRD,))
        elif min(self.full_layers, default=0) < 0:
            raise UserError(
                f"attention.full_layers={self.full_layers} has to be numbers of layers, from 0 on."
            )

    def fit(self, *, layers: int) -> None:
        """Raises UserError for a number that no layer of the model has."""
        if not isinstance(self.full_layers, str) and max(self.full_layers, default=0) >= layers:
            raise UserError(
                f"attention.full_layers names layer {max(self.full_layers)}, and the model has 0 to {layers - 1}."
            )

    def at(self, layer: int, *, layers: int, heads: int) -> Pattern:
        """Full in the layers that are named."""
        if isinstance(self.full_layers, str):
            return FULL if layer in middle_third(layers) else self.others
        return FULL if layer in self.full_layers else self.others


def middle_third(layers: int) -> range:
    """A third of the layers, rounded, in the middle: 10 … 19 of 30, 10 … 20 of 32, 26 … 52 of 80."""
    count = round(layers / 3)
    first = round((layers - count) / 2)
    return range(first, first + count)


def _positive(name: str, value: int) -> None:
    """Refuses a number of tokens below 1."""
    if value < 1:
        raise UserError(f"attention.{name}={value} has to be a number of tokens, from 1 on.")


def _not_negative(name: str, value: int) -> None:
    """Refuses a number of tokens below 0."""
    if value < 0:
        raise UserError(f"attention.{name}={value} has to be a number of tokens, from 0 on.")
