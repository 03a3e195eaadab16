"""A row's parts as its pieces: in one line, or in knots."""

from __future__ import annotations

from collections.abc import Sequence

from align.data.piece_rows import Piece
from align.synthesis.token_documents import DocumentTokens
from align.synthesis.utk.filling import Part
from align.synthesis.utk.knots import lists_at, row_order
from align.synthesis.utk.marks import Marks


def plain_pieces(documents: DocumentTokens, parts: Sequence[Part]) -> list[Piece]:
    """Documents one after the other; every token is scored but what the tokenizer puts before a text."""
    pieces = documents.opening()
    for part in parts:
        pieces += documents.pieces(part.document, part.start, part.stop, continues=bool(pieces))
    return pieces


def knotted_pieces(
    documents: DocumentTokens, parts: Sequence[Part], permutation: Sequence[int], marks: Marks, *, order: str
) -> list[Piece]:
    """Pieces of all documents in the order of the permutation, with knots, labels and lists.

    Knots, labels and the mark that begins a list are read and not scored; the list's labels, the marks between them and
    behind them are, as all text is.

    Args:
        documents: of the run.
        parts: what the row holds of them.
        permutation: see `row_order`.
        marks: the tokens that are put in.
        order: `keep` or `broken`.
    """
    stands = row_order([part.pieces for part in parts], permutation, order=order)
    lists = lists_at(stands)
    pieces = documents.opening()
    for place, (document, piece) in enumerate(stands):
        part = parts[document]
        if part.labels:
            pieces += [
                Piece(token=marks.label[0], scored=False),
                Piece(text=part.labels[piece], scored=False),
                Piece(token=marks.label[1], scored=False),
            ]
        if piece > 0:
            pieces.append(Piece(token=marks.head_of(piece), scored=False))
        start, stop = (part.start + part.edges[piece + end] for end in (0, 1))
        pieces += documents.pieces(part.document, start, stop, continues=bool(pieces))
        if piece < part.pieces - 1:
            pieces.append(Piece(token=marks.tail_of(piece), scored=False))
        if part.labels and place in lists:
            pieces += _list([part.labels[stands[own][1]] for own in lists[place]], marks)
    return pieces


def _list(labels: Sequence[str], marks: Marks) -> list[Piece]:
    begin, between, end = marks.listing
    pieces = [Piece(token=begin, scored=False)]
    for place, label in enumerate(labels):
        pieces += [Piece(token=between)] if place else []
        pieces.append(Piece(text=label))
    return [*pieces, Piece(token=end)]
