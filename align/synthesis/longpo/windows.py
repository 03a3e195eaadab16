"""LongPO's long contexts: consecutive chunks of one document, as many as a row may hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.documents.chunking import Chunk, cut_document
from align.documents.loading import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Window:
    """A stretch of a document that one row is made of.

    Attributes:
        document: where it is from.
        chunks: at least two, in document order.
        first: the first chunk's place among those that the document keeps.
    """

    document: Document
    chunks: tuple[Chunk, ...]
    first: int

    @property
    def id(self) -> str:
        """`<document id>@<first chunk>`."""
        return f"{self.document.id}@{self.first}"

    @property
    def tokens(self) -> int:
        """Tokens of its chunks."""
        return sum(chunk.tokens for chunk in self.chunks)


@dataclass(frozen=True)
class WindowSizes:
    """How documents are cut; tokens all but `max_chunks`.

    Attributes:
        chunk_min_tokens: smaller chunks are left out.
        chunk_max_tokens: most of a chunk.
        max_chunks: most chunks of a window; None is unlimited.
        context_min_tokens: windows below are left out.
        context_max_tokens: most of a window.
        per_document: most windows of a document, the first ones; None is unlimited.
    """

    chunk_min_tokens: int
    chunk_max_tokens: int
    max_chunks: int | None
    context_min_tokens: int
    context_max_tokens: int
    per_document: int | None = None


def cut_windows(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    sizes: WindowSizes,
    dropped: Counter[str],
    *,
    limit: int | None = None,
) -> Iterator[Window]:
    """The windows of each document in turn; `dropped` counts chunks and windows that were too short.

    Ends behind the document that is the `limit`-th to give a window.
    """
    used = 0
    for place, document in enumerate(documents):
        if used == limit:
            return
        chunks = cut_document(document, place, tokenizer, chunk_tokens=sizes.chunk_max_tokens)
        kept = [chunk for chunk in chunks if chunk.tokens >= sizes.chunk_min_tokens]
        dropped["chunk shorter than chunk_min_tokens"] += len(chunks) - len(kept)
        first = given = 0
        for group in _grouped(kept, sizes):
            window = Window(document, tuple(group), first)
            first += len(group)
            if len(group) < 2 or window.tokens < sizes.context_min_tokens:
                dropped["context of one chunk, or shorter than context_min_tokens"] += 1
            elif given != sizes.per_document:
                given += 1
                yield window
        used += given > 0


def _grouped(chunks: Sequence[Chunk], sizes: WindowSizes) -> list[list[Chunk]]:
    """Neighbours together while count and sum allow; a chunk that was left out between two parts them."""
    groups: list[list[Chunk]] = []
    tokens = 0
    for chunk in chunks:
        full = bool(groups) and sizes.max_chunks is not None and len(groups[-1]) == sizes.max_chunks
        apart = bool(groups) and chunk.index != groups[-1][-1].index + 1
        if not groups or full or apart or tokens + chunk.tokens > sizes.context_max_tokens:
            groups.append([])
            tokens = 0
        groups[-1].append(chunk)
        tokens += chunk.tokens
    return groups
