"""Documents cut into chunks of a token budget, at paragraphs first, then sentences, lines and tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.documents.loading import Document

# From the coarsest to the finest; a cut is made behind what matches.
BOUNDARIES = (
    re.compile(r"(?:\r\n|\n|\r(?!\n))[ \t]*(?:\r\n|\n|\r(?!\n))\s*"),  # paragraphs, whatever ends their lines
    re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|(?<=[。！？])"),  # sentences
    re.compile(r"\r\n|\n|\r"),
)

Span = tuple[int, int]


@dataclass(frozen=True)
class Chunk:
    """A stretch of a document.

    Attributes:
        document: the document's place in the run, from 0.
        index: the chunk's place in the document, from 0.
        id: `<document id>#<index>`.
        text: exactly `document.text[start:start + len(text)]`; no white space around it.
        start: first character in the document.
        tokens: its tokens, counted in the document as a whole.
    """

    document: int
    index: int
    id: str
    text: str
    start: int
    tokens: int

    @property
    def order(self) -> tuple[int, int]:
        """Sorts chunks of any documents in document order."""
        return (self.document, self.index)


def cut_document(
    document: Document, place: int, tokenizer: PreTrainedTokenizerBase, *, chunk_tokens: int
) -> list[Chunk]:
    """The document's chunks in order; together they hold all of its text but white space between them.

    Neighbouring pieces are joined greedily while they fit. A piece is cut more finely only where it alone
    is over the budget, down to single tokens.

    Args:
        document: what to cut.
        place: its place in the run.
        tokenizer: a fast one; special tokens' strings in the document count as plain text.
        chunk_tokens: the most tokens a chunk may have (LOGO: 512).
    """
    starts = _token_starts(document.text, tokenizer)
    spans = _joined(
        _pieces(document.text, (0, len(document.text)), 0, starts, chunk_tokens), starts, chunk_tokens
    )
    chunks: list[Chunk] = []
    for start, stop in spans:
        text = document.text[start:stop]
        if text.strip():
            start += len(text) - len(text.lstrip())
            index = len(chunks)
            chunk = Chunk(
                place, index, f"{document.id}#{index}", text.strip(), start, _count(starts, (start, stop))
            )
            chunks.append(chunk)
    return chunks


def _token_starts(text: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """First character of each token, `[n]`; several byte tokens of one character share it."""
    encoding = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        truncation=False,
        verbose=False,
    )
    return np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 0]


def _count(starts: np.ndarray, span: Span) -> int:
    first, last = np.searchsorted(starts, span, side="left")
    return int(last - first)


def _pieces(text: str, span: Span, level: int, starts: np.ndarray, budget: int) -> Iterator[Span]:
    """Consecutive spans that each fit the budget, as coarse as it allows."""
    if _count(starts, span) <= budget:
        yield span
    elif level == len(BOUNDARIES):
        yield from _by_tokens(span, starts, budget)
    else:
        ends = [match.end() for match in BOUNDARIES[level].finditer(text, *span)]
        edges = sorted({span[0], *ends, span[1]})
        for piece in pairwise(edges):
            yield from _pieces(text, piece, level + 1, starts, budget)


def _by_tokens(span: Span, starts: np.ndarray, budget: int) -> Iterator[Span]:
    """As many tokens as fit, again and again; tokens of one character stay together, even over the budget."""
    start, stop = span
    while _count(starts, (start, stop)) > budget:
        first = int(np.searchsorted(starts, start, side="left"))
        edge = int(starts[first + budget])
        if edge <= starts[first]:
            edge = next((int(later) for later in starts[first + budget :] if later > starts[first]), stop)
        yield start, min(edge, stop)
        start = min(edge, stop)
    if start < stop:
        yield start, stop


def _joined(pieces: Iterator[Span], starts: np.ndarray, budget: int) -> Sequence[Span]:
    """Neighbours joined while the sum fits."""
    joined: list[Span] = []
    for start, stop in pieces:
        if joined and _count(starts, (joined[-1][0], stop)) <= budget:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined
