"""The marks of Untie the Knots, and other choices that settings are checked by."""

from __future__ import annotations

from dataclasses import dataclass

ORDERS = ("keep", "broken")  # of `pipeline.order`


@dataclass(frozen=True)
class Marks:
    """The tokens that show where a document goes on; each is one token of the tokenizer.

    Attributes:
        label: before and behind the label of a piece.
        head: before piece j > 1, `{j}` in it; the one that goes on piece j − 1.
        tail: behind piece j that is not the last one.
        listing: before the list of labels at a document's end, between two labels, and behind it.
    """

    label: tuple[str, str]
    head: str
    tail: str
    listing: tuple[str, str, str]

    def head_of(self, piece: int) -> str:
        """Of the piece `piece`, from 0: `<|h_2|>` of piece 1."""
        return self.head.format(j=piece + 1)

    def tail_of(self, piece: int) -> str:
        """Of the piece `piece`, from 0: `<|t_1|>` of piece 0."""
        return self.tail.format(j=piece + 1)

    def names(self, most: int, *, backtrace: bool) -> list[str]:
        """All tokens that documents of at most `most` pieces need, in the order of their use."""
        knots = [name for j in range(most - 1) for name in (self.tail_of(j), self.head_of(j + 1))]
        return [*self.label, *knots, *self.listing] if backtrace else knots
