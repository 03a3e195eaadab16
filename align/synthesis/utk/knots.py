"""Untie the Knots: where documents are cut, in what order their pieces stand, and which lists name them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def cut_points(length: int, pieces: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Where `length` tokens are cut into as many pieces: `pieces − 1` unlike places in 1 … length − 1, all as likely.

    10 tokens in 3 pieces may be cut at 3 and 7: edges 0, 3, 7, 10.

    Returns:
        The edges, `pieces + 1` of them.
    """
    inner = rng.choice(length - 1, size=pieces - 1, replace=False) + 1 if pieces > 1 else ()
    return (0, *sorted(int(place) for place in inner), length)


def row_order(counts: Sequence[int], permutation: Sequence[int], *, order: str) -> list[tuple[int, int]]:
    """Which piece stands at each place of a row, as (document, piece).

    The pieces of all documents, one after the other, are given the places that the permutation names; with
    `order="keep"` a document's pieces then take its places in their own order, so that a reader always meets them as
    they were written. Documents of 3, 2 and 1 pieces with the places 3 0 4 1 2 5: the first document has 0, 3 and 4,
    and the row is (0,0) (1,0) (1,1) (0,1) (0,2) (2,0).

    Args:
        counts: pieces of each document.
        permutation: of 0 … the number of pieces − 1.
        order: `keep` or `broken`.
    """
    stands: dict[int, tuple[int, int]] = {}
    first = 0
    for document, count in enumerate(counts):
        places = [int(place) for place in permutation[first : first + count]]
        for piece, place in enumerate(sorted(places) if order == "keep" else places):
            stands[place] = (document, piece)
        first += count
    return [stands[place] for place in range(first)]


def lists_at(order: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    """Place of a document's last piece in the row → the places of all its pieces, the first piece's first.

    A document of one piece has no list. In the example of `row_order`: 4 → 0, 3, 4 and 2 → 1, 2.
    """
    places: dict[int, dict[int, int]] = {}
    for place, (document, piece) in enumerate(order):
        places.setdefault(document, {})[piece] = place
    found = {}
    for of_document in places.values():
        if len(of_document) > 1:
            found[max(of_document.values())] = [of_document[piece] for piece in range(len(of_document))]
    return found


def is_knotted(row: int, share: float) -> bool:
    """Whether row `row`, from 0, is knotted: of the first n rows ⌊n · share⌋ are, evenly spread.

    With a share of 0.8 the rows 1, 2, 3, 4, 6, 7, 8, 9 of the first ten.
    """
    slack = 1e-9  # 0.29 · 100 is 28.999999999999996
    return int((row + 1) * share + slack) > int(row * share + slack)
