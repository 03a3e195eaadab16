"""Which earlier document a new one is like, by the overlap of their word shingles."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from align.documents.duplicates import split_words

if TYPE_CHECKING:
    from datasketch import MinHash

    from align.documents.loading import Document

SHINGLE = 5  # words
PERMUTATIONS = 128
PORTION = 4096  # shingles hashed at once
RECENT = 16  # documents whose shingles are kept, for the next that is like them
# Odd numbers, one a place in a shingle: the golden ratio's multiples of SplitMix64.
_PLACES = tuple((0x9E3779B97F4A7C15 * (2 * place + 1)) % 2**64 for place in range(SHINGLE))


class NearCopies:
    """Finds which kept document a new one is like; of each kept one it holds a sketch of one kilobyte, and no words."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH

        self.threshold = threshold
        # A looser index, so that an estimate below the truth hides no candidate; the true index decides.
        self.index = MinHashLSH(threshold=0.7 * threshold, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        self.kept: dict[str, Document] = {}
        self._recent = functools.lru_cache(maxsize=RECENT)(self._shingles_of)

    def add(self, document: Document, words: Sequence[str]) -> tuple[str, float] | None:
        """The kept document that this one is like, and how much; None keeps it."""
        own = shingles(words)
        sketch = _sketch(own)
        found = [(_jaccard(own, self._recent(other)), other) for other in self.index.query(sketch)]
        best = max(found, default=(0.0, ""))
        if best[0] >= self.threshold:
            return best[1], best[0]
        self.index.insert(document.id, sketch)
        self.kept[document.id] = document
        return None

    def _shingles_of(self, name: str) -> np.ndarray:
        """Of a kept document, made again from its text: candidates are few, and shingles take as much as the text."""
        return shingles(split_words(self.kept[name].text))


def shingles(words: Sequence[str]) -> np.ndarray:
    """Distinct hashes of every `SHINGLE` words in a row, `[n]` uint64, rising; of all words where there are fewer.

    A word's hash is eight bytes of BLAKE2b; a shingle's is the sum of its words' times odd numbers that differ by
    place, mixed (SplitMix64's finaliser). Two shingles share one with a probability of about 2⁻⁶⁴.
    """
    known = {word: _word_hash(word) for word in set(words)}
    hashes = np.fromiter((known[word] for word in words), dtype=np.uint64, count=len(words))
    size = min(SHINGLE, len(words))
    count = len(words) - size + 1 if size else 0
    mixed = np.zeros(count, dtype=np.uint64)
    for place in range(size):
        mixed += hashes[place : place + count] * np.uint64(_PLACES[place])
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.unique(mixed ^ (mixed >> np.uint64(31)))


@functools.lru_cache(maxsize=1 << 16)  # the common words of all documents
def _word_hash(word: str) -> int:
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _sketch(own: np.ndarray) -> MinHash:
    """MinHash of a set; a portion at a time, since `PERMUTATIONS` numbers an element are made of each."""
    from datasketch import MinHash

    sketch = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)
    for start in range(0, len(own), PORTION):
        sketch.update_batch(own[start : start + PORTION] & np.uint64(0xFFFFFFFF))
    return sketch


def _jaccard(first: np.ndarray, second: np.ndarray) -> float:
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / max(1, len(first) + len(second) - common)
