"""Untie the Knots: the golden row, where cuts and pieces may lie, and how many rows are knotted."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from align.data.piece_rows import piece_row
from align.data.settings import DataSettings
from align.data.tokens import ExampleTokenizer
from align.synthesis.token_documents import DocumentTokens, TokenDocument
from align.synthesis.utk.filling import Knots, Part
from align.synthesis.utk.knots import cut_points, is_knotted, lists_at, row_order
from align.synthesis.utk.marks import Marks
from align.synthesis.utk.rows import knotted_pieces

# The places of documents of 3, 2 and 1 pieces; the released code leaves a row's very last piece where it is.
PERMUTATION = [3, 0, 4, 1, 2, 5]
NAMED = {
    1000: "t1",
    1001: "h2",
    1002: "t2",
    1003: "h3",
    1004: "[",
    1005: "]",
    1006: "<S>",
    1007: "<s>",
    1008: "</S>",
}
MARKS = Marks(("[", "]"), "h{j}", "t{j}", ("<S>", "<s>", "</S>"))


def numbers() -> PreTrainedTokenizerFast:
    """Number n is token n, but for those that are marks."""
    words = {NAMED.get(n, str(n)): n for n in range(1009)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins by spaces
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def parts(labels: tuple[tuple[str, ...], ...] = ((), (), ())) -> list[Part]:
    """Documents 100–109 cut at 3 and 7, 200–206 cut at 4, 300–304 whole."""
    cut = [(100, (0, 3, 7, 10)), (200, (0, 4, 7)), (300, (0, 5))]
    return [
        Part(TokenDocument(str(first), np.arange(first, first + edges[-1]), 0, 0), place, 0, edges, own)
        for place, ((first, edges), own) in enumerate(zip(cut, labels, strict=True))
    ]


def row(found: list[Part], order: str = "keep"):
    """The tokens of the knotted row, and which of them are scored."""
    tokenizer = numbers()
    pieces = knotted_pieces(
        DocumentTokens([], tokenizer, start=False), found, PERMUTATION, MARKS, order=order
    )
    example = piece_row("a:1", pieces, ExampleTokenizer(tokenizer, DataSettings(), chunk_tokens=8))
    ids = np.concatenate([example.prompt_ids, example.answers[0].input_ids])
    return ids.tolist(), np.concatenate([[False], example.answers[0].scored])


def test_the_order_and_the_lists() -> None:
    """(document, piece): (0,0)(1,0)(1,1)(0,1)(0,2)(2,0); lists after the places 4 and 2, none of the whole document.

    The released code enters the last document's last piece by its number in the place of its place, so that its list
    would name another label and stand elsewhere: here the list of whichever document names its own places.
    """
    order = row_order([3, 2, 1], PERMUTATION, order="keep")
    assert order == [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (2, 0)]
    assert lists_at(order) == {4: [0, 3, 4], 2: [1, 2]}
    last = row_order([1, 2], [1, 0, 2], order="keep")
    assert last == [(1, 0), (0, 0), (1, 1)] and lists_at(last) == {2: [0, 2]}


def test_the_golden_row() -> None:
    ids, scored = row(parts())
    first = [*range(100, 103), 1000, *range(200, 204), 1000, 1001, *range(204, 207)]
    then = [1001, *range(103, 107), 1002, 1003, *range(107, 110), *range(300, 305)]
    assert ids == first + then
    assert [n for n, own in zip(ids, scored, strict=True) if not own] == [
        100,
        1000,
        1000,
        1001,
        1001,
        1002,
        1003,
    ]


def test_labels_and_lists_of_the_golden_row() -> None:
    """Labels 11–16: read and not scored before each piece; the lists are scored but for the mark before them."""
    ids, scored = row(parts((("11", "12", "13"), ("14", "15"), ("16",))))
    place = ids.index(206)
    assert ids[place + 1 : place + 6] == [1006, 14, 1007, 15, 1008]
    assert scored[place : place + 6].tolist() == [True, False, True, True, True, True]
    place = ids.index(109)
    assert ids[place + 1 : place + 8] == [1006, 11, 1007, 12, 1007, 13, 1008]
    assert scored[place + 1 : place + 8].tolist() == [False, *[True] * 6]
    assert ids[:4] == [1004, 11, 1005, 100] and ids.count(1006) == 2
    assert ids[ids.index(204) - 4 : ids.index(204)] == [1004, 15, 1005, 1001]
    named = [
        place for place, number in enumerate(ids) if number in (1004, 1005, 1000, 1001, 1002, 1003, 1006)
    ]
    assert not scored[named].any()


def test_broken_order_is_as_drawn_and_lists_stay_in_the_documents_order() -> None:
    """Places 3, 0, 4 for the pieces 0, 1, 2 of the first document: its list names them so, behind the last place."""
    order = row_order([3, 2, 1], PERMUTATION, order="broken")
    assert order == [(0, 1), (1, 0), (1, 1), (0, 0), (0, 2), (2, 0)]
    assert lists_at(order) == {4: [3, 0, 4], 2: [1, 2]}
    ids, _ = row(parts(), order="broken")
    assert ids[:6] == [1001, 103, 104, 105, 106, 1002]


@pytest.mark.parametrize("pieces", [1, 2, 3, 6])
def test_cuts_are_unlike_places_and_all_as_likely(pieces) -> None:
    rng = np.random.default_rng(0)
    seen = np.zeros(7)
    for _ in range(2000):
        edges = cut_points(6, pieces, rng)
        assert edges[0] == 0 and edges[-1] == 6 and len(edges) == pieces + 1
        assert all(a < b for a, b in pairwise(edges))
        seen[list(edges[1:-1])] += 1
    expected = 2000 * (pieces - 1) / 5
    assert np.abs(seen[1:6] - expected).max() <= 5 * np.sqrt(2000 * 0.25)


def test_any_order_holds_every_piece_once_in_its_documents_order() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        counts = rng.integers(1, 5, rng.integers(1, 9)).tolist()
        permutation = rng.permutation(sum(counts)).tolist()
        order = row_order(counts, permutation, order="keep")
        assert sorted(order) == [(d, piece) for d, count in enumerate(counts) for piece in range(count)]
        for document, count in enumerate(counts):
            assert [piece for own, piece in order if own == document] == list(range(count))
        for place, named in lists_at(order).items():
            document, piece = order[place]
            assert piece == counts[document] - 1 == len(named) - 1 and named == sorted(named)
            assert {order[one][0] for one in named} == {document}
        assert len(lists_at(order)) == sum(count > 1 for count in counts)


@pytest.mark.parametrize("share", [0.0, 0.29, 0.3, 0.8, 1.0])
def test_as_many_rows_are_knotted_as_the_share_says(share) -> None:
    assert [sum(is_knotted(row, share) for row in range(n)) for n in (10, 100)] == [
        int(share * 10 + 1e-9),
        round(share * 100),
    ]


def test_the_odds_of_pieces_are_those_of_the_paper() -> None:
    """Of 3,000 documents a fifth whole, two fifths in two pieces and in three; within five deviations."""
    rng = np.random.default_rng(2)
    knots = Knots(odds=[0.2, 0.4, 0.4], min_split=8, backtrace=False, length_of=len, rng=rng)
    counts = np.bincount([len(knots(50, 1000)[0]) - 1 for _ in range(3000)], minlength=4)
    assert np.abs(counts[1:] - [600, 1200, 1200]).max() <= 5 * np.sqrt(3000 * 0.24)
    assert {len(knots(7, 1000)[0]) for _ in range(20)} == {2}  # below min_split: whole


def test_what_marks_cost() -> None:
    """The docstring's: 4 knots, 15 + 6 for the labels, 15 + 2 + 2 for the list; of a whole document its label alone."""
    rng = np.random.default_rng(3)
    knots = Knots(odds=[1.0], min_split=8, backtrace=True, length_of=lambda label: 5, rng=rng)
    assert (knots.marks(3, 15), knots.marks(1, 5)) == (4 + 21 + 19, 7)
    knots.backtrace = False
    assert (knots.marks(3, 0), knots.marks(1, 0)) == (4, 0)
