"""Documents that say the same: exact copies, and near ones by the overlap of their word shingles."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from align.core.errors import UserError
from align.documents.loading import Document

KINDS = ("none", "exact", "near")


@dataclass(frozen=True)
class Removed:
    """A document that was left out.

    Attributes:
        document: it.
        like: the id of the earlier one that is kept.
        kind: `exact` or `near`.
        similarity: Jaccard index of the two sets of shingles; 1 for exact copies.
    """

    document: Document
    like: str
    kind: str
    similarity: float


def copies_by_kind(removed: Sequence[Removed] | None) -> dict[str, int]:
    """How many documents were left out, by reason; nothing where they were not compared."""
    if removed is None:
        return {}
    kinds = [item.kind for item in removed]
    return {
        "document equal to another": kinds.count("exact"),
        "document nearly equal to another": kinds.count("near"),
    }


def check_duplicates(kind: str, threshold: float) -> None:
    """Raises UserError for values out of range."""
    if kind not in KINDS:
        raise UserError(f"deduplicate={kind}: use {', '.join(KINDS)}.")
    if not 0 < threshold <= 1:
        raise UserError(f"near_duplicate={threshold} must lie in (0, 1].")


def remove_duplicates(
    documents: Sequence[Document], *, kind: str, threshold: float
) -> tuple[list[Document], list[Removed]]:
    """The documents without later copies of earlier ones, and what was left out.

    White space and case make no difference. Near duplicates are found by MinHash (Broder 1997) and then
    compared by their true Jaccard index, so that no document is removed by an estimate's error.

    Args:
        documents: in order; the first of its kind stays.
        kind: `none`, `exact`, or `near` (exact ones too).
        threshold: Jaccard index from which on two documents are near duplicates.
    """
    if kind == "none":
        return list(documents), []
    from align.documents.shingles import NearCopies, split_words  # numpy

    kept: list[Document] = []
    removed: list[Removed] = []
    first: dict[str, str] = {}
    near = NearCopies(threshold) if kind == "near" else None
    for document in documents:
        words = split_words(document.text)
        digest = hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).hexdigest()
        if digest in first:
            removed.append(Removed(document, first[digest], "exact", 1.0))
            continue
        first[digest] = document.id
        like = None if near is None else near.add(document, words)
        if like is not None:
            removed.append(Removed(document, like[0], "near", like[1]))
            continue
        kept.append(document)
    return kept, removed
