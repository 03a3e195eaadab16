"""Which tokens of which documents a row holds, so that it has its length with all marks: plainly or in knots."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from align.synthesis.token_documents import DocumentTokens, TokenDocument
from align.synthesis.utk.knots import cut_points

ALPHABET = tuple(string.ascii_letters + string.digits)
LABEL_CHARACTERS = 6  # of a label (paper)


@dataclass(frozen=True)
class Part:
    """The stretch of a document that a row holds.

    Attributes:
        document: it.
        place: of it in the run's order.
        start: its first token.
        edges: of its pieces, from `start` on: 0, 3, 7, 10 are three pieces.
        labels: of the pieces, each a text of its own in the row; empty without backtracing and in a plain row.
    """

    document: TokenDocument
    place: int
    start: int
    edges: tuple[int, ...]
    labels: tuple[str, ...] = ()

    @property
    def stop(self) -> int:
        """The token behind its last one."""
        return self.start + self.edges[-1]

    @property
    def pieces(self) -> int:
        """How many it has."""
        return len(self.edges) - 1


# Of a document's remaining tokens and the row's remaining room: the edges and labels of what is taken, and what that
# costs with its marks; None where nothing fits.
Take = Callable[[int, int], tuple[tuple[int, ...], tuple[str, ...], int] | None]


def fill(documents: DocumentTokens, place: int, offset: int, room: int, take: Take) -> list[Part]:
    """The parts of a row of `room` tokens, from token `offset` of the document at `place` on, in the run's order.

    A document that is longer than the room is cut there, and the next row goes on with it.
    """
    parts = []
    while room > 0 and place < len(documents):
        document = documents[place]
        rest = len(document) - offset
        taken = take(rest, room)
        if taken is None:
            break
        edges, labels, cost = taken
        parts.append(Part(document, place, offset, edges, labels))
        room -= cost
        if edges[-1] < rest:
            break
        place, offset = place + 1, 0
    return parts


def whole(rest: int, room: int) -> tuple[tuple[int, ...], tuple[str, ...], int]:
    """A `Take` of plain rows: what fits, as one piece and without marks."""
    length = min(rest, room)
    return (0, length), (), length


@dataclass
class Knots:
    """A `Take` of knotted rows: a document in a drawn number of pieces, with room for all that marks them.

    Attributes:
        odds: of 1, 2, … pieces.
        min_split: tokens from which on a document is cut.
        backtrace: whether pieces have labels, and documents lists of them.
        length_of: tokens of a label.
        rng: of the row.
    """

    odds: list[float]
    min_split: int
    backtrace: bool
    length_of: Callable[[str], int]
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self._drawn: set[str] = set()

    def __call__(self, rest: int, room: int) -> tuple[tuple[int, ...], tuple[str, ...], int] | None:
        """What of a document of `rest` tokens fits into `room`: in the number of pieces that is drawn, else whole."""
        wanted = 1
        if rest >= self.min_split:
            wanted = 1 + int(self.rng.choice(len(self.odds), p=self.odds))
        labels = tuple(self._label() for _ in range(wanted)) if self.backtrace else ()
        for count in dict.fromkeys((wanted, 1)):
            used = labels[:count]
            marks = self.marks(count, sum(map(self.length_of, used)))
            length = min(rest, room - marks)
            if length >= (1 if count == 1 else self.min_split):
                return cut_points(length, count, self.rng), used, length + marks
        return None

    def marks(self, pieces: int, label_tokens: int) -> int:
        """Tokens beside a document's own: knots, labels between two marks, and the list.

        Of three pieces whose labels have 5 tokens each: 4 knots, 15 + 6 for the labels, 15 + 2 + 2 for the list.
        """
        knots = 2 * (pieces - 1)
        if not self.backtrace:
            return knots
        named = label_tokens + 2 * pieces
        return knots + named + (label_tokens + pieces + 1 if pieces > 1 else 0)

    def _label(self) -> str:
        """Random letters and digits that no other piece of the row has."""
        while True:
            drawn = "".join(str(one) for one in self.rng.choice(ALPHABET, size=LABEL_CHARACTERS))
            if drawn not in self._drawn:
                self._drawn.add(drawn)
                return drawn
