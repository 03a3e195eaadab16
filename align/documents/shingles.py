"""Which earlier document a new one is like, by the overlap of their word shingles."""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasketch import MinHash

    from align.documents.loading import Document

SHINGLE = 5  # words
PERMUTATIONS = 128
PORTION = 4096  # shingles hashed at once
MARGIN = 4  # standard errors of a sketch's estimate: below, one document in 30,000 is taken for less like than it is
KNOWN_BYTES = 64 * 2**20  # of shingles that are kept, for the next document that is like theirs
# Odd numbers, one a place in a shingle: the golden ratio's multiples of SplitMix64.
_PLACES = tuple((0x9E3779B97F4A7C15 * (2 * place + 1)) % 2**64 for place in range(SHINGLE))


class NearCopies:
    """Finds which kept document a new one is like; of each kept one it holds a sketch of a kilobyte, and no words.

    Documents that share boilerplate are candidates of each other without being copies. Sketches tell most of these
    apart; only those whose estimate comes near the threshold are compared truly.
    """

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH

        self.threshold = threshold
        # A looser index, so that an estimate below the truth hides no candidate; the true index decides.
        self.index = MinHashLSH(threshold=0.7 * threshold, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        self.least = threshold - MARGIN * math.sqrt(threshold * (1 - threshold) / PERMUTATIONS)
        self.kept: list[Document] = []
        self.sketches = np.empty(
            (64, PERMUTATIONS), dtype=np.uint32
        )  # more rows than documents, to grow rarely
        self._known = Within(KNOWN_BYTES)

    def add(self, document: Document, words: Sequence[str]) -> tuple[str, float] | None:
        """The kept document that this one is like, and how much; None keeps it."""
        own = shingles(words)
        sketch = _sketch(own)
        row = sketch.hashvalues.astype(np.uint32)  # they are below 2³²
        places = np.asarray(self.index.query(sketch), dtype=np.int64)
        estimates = np.mean(self.sketches[places] == row, axis=1)
        near = [int(place) for place in places[estimates >= self.least]]
        found = [(_jaccard(own, self._shingles_of(place)), self.kept[place].id) for place in near]
        best = max(found, default=(0.0, ""))
        if best[0] >= self.threshold:
            return best[1], best[0]
        self._keep(document, sketch, row)
        return None

    def _keep(self, document: Document, sketch: MinHash, row: np.ndarray) -> None:
        place = len(self.kept)
        if place == len(self.sketches):
            self.sketches = np.concatenate([self.sketches, np.empty_like(self.sketches)])
        self.index.insert(place, sketch)
        self.sketches[place] = row
        self.kept.append(document)

    def _shingles_of(self, place: int) -> np.ndarray:
        """Of a kept document, made again from its text where it was not compared lately."""
        known = self._known.get(place)
        if known is None:
            known = shingles(split_words(self.kept[place].text))
            self._known.put(place, known)
        return known


class Within:
    """Arrays by number, those that were asked for last, of so many bytes together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self.arrays: OrderedDict[int, np.ndarray] = OrderedDict()

    def get(self, place: int) -> np.ndarray | None:
        """The array; None where it was never put here, or had to go."""
        if place not in self.arrays:
            return None
        self.arrays.move_to_end(place)
        return self.arrays[place]

    def put(self, place: int, array: np.ndarray) -> None:
        """Takes an array that is not here; those that were not asked for longest go."""
        self.arrays[place] = array
        self.held += array.nbytes
        while self.held > self.most:
            _, gone = self.arrays.popitem(last=False)
            self.held -= gone.nbytes


def split_words(text: str) -> list[str]:
    """What stands between white space, in small letters."""
    return re.findall(r"\S+", text.casefold())


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
    """Of two rising arrays; each number of the first is looked for in the second, without sorting both anew."""
    if not len(second):
        return 0.0
    places = np.searchsorted(second, first)
    common = int(np.count_nonzero(second[np.minimum(places, len(second) - 1)] == first))
    return common / max(1, len(first) + len(second) - common)
