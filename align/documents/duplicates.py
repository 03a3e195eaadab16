"""Documents that say the same: exact copies, and near ones by the overlap of their word shingles."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from align.core.errors import UserError
from align.documents.loading import Document

KINDS = ("none", "exact", "near")
SHINGLE = 5  # words
PERMUTATIONS = 128


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
    kept: list[Document] = []
    removed: list[Removed] = []
    first: dict[str, str] = {}
    near = _Near(threshold) if kind == "near" else None
    for document in documents:
        words = re.findall(r"\S+", document.text.casefold())
        digest = hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).hexdigest()
        if digest in first:
            removed.append(Removed(document, first[digest], "exact", 1.0))
            continue
        first[digest] = document.id
        like = None if near is None else near.add(document.id, words)
        if like is not None:
            removed.append(Removed(document, like[0], "near", like[1]))
            continue
        kept.append(document)
    return kept, removed


class _Near:
    """The shingles of the documents kept so far."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH

        self.threshold = threshold
        # A looser index, so that an estimate below the truth hides no candidate; the true index decides.
        self.index = MinHashLSH(threshold=0.7 * threshold, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        self.shingles: dict[str, frozenset[bytes]] = {}

    def add(self, name: str, words: Sequence[str]) -> tuple[str, float] | None:
        """The kept document that this one is like, and how much; None keeps it."""
        from datasketch import MinHash

        own = shingles(words)
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch(sorted(own))
        found = [(_jaccard(own, self.shingles[other]), other) for other in self.index.query(sketch)]
        best = max(found, default=(0.0, ""))
        if best[0] >= self.threshold:
            return best[1], best[0]
        self.index.insert(name, sketch)
        self.shingles[name] = own
        return None


def shingles(words: Sequence[str]) -> frozenset[bytes]:
    """Eight-byte hashes of every `SHINGLE` words in a row; of all words where there are fewer."""
    size = min(SHINGLE, len(words))
    return frozenset(
        hashlib.blake2b(
            " ".join(words[i : i + size]).encode("utf-8", "surrogatepass"), digest_size=8
        ).digest()
        for i in range(len(words) - size + 1)
    )


def _jaccard(first: frozenset[bytes], second: frozenset[bytes]) -> float:
    return len(first & second) / max(1, len(first | second))
