"""Relevance of chunks to a question: which ones matter to its answer, and which do not.

Asked `What runs on Python?`, a chunk about Python has a high score and one about bread 0. The class that scores is one
of these or of elsewhere, named by `pipeline.scorer`.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from align.core.errors import UserError

# Words that say nothing about a topic; those of questions matter most, since chunks rarely ask.
_STOP_WORDS = """
a about after all also an and any are as at be because been before being between both but by can could
did do does doing during each few for from had has have having he her here his how i if in into is it its
itself just may me might more most must my no nor not of off on once only or other our out over own
passage same she should so some such text than that the their them then there these they this those
through to too under until up very was we were what when where which while who whom whose why will with
would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
# A word, or one character of the scripts that write no spaces between words.
_WORD = re.compile(r"[぀-ヿ㐀-鿿]|[^\W_぀-ヿ㐀-鿿]+")


class RelevanceScorer(Protocol):
    """Scores the relevance of chunks to a question."""

    @property
    def name(self) -> str:
        """Recorded in every row."""

    def score(self, question: str, chunks: Sequence[str]) -> list[float]:
        """One number a chunk, larger for more important ones; may depend on all chunks given."""

    def is_critical(self, scores: Sequence[float]) -> list[bool]:
        """Which of the chunks scored together count as critical; the others are irrelevant."""


@dataclass(frozen=True)
class Bm25:
    """Okapi BM25 over word stems, the chunks of one call being the collection.

    Σ_t idf(t) · f·(k1 + 1) / (f + k1·(1 − b + b·|chunk| / mean |chunk|)) over the question's distinct stems t
    with idf(t) = ln(1 + (n − n_t + ½)/(n_t + ½)) (Robertson and Zaragoza 2009; the idf that never is negative).

    Attributes:
        k1: saturation of repeated words.
        b: share of length normalisation, 0 … 1.
        critical_share: a chunk is critical from this share of the best score on; BM25 has no absolute scale.
    """

    k1: float = 1.2
    b: float = 0.75
    critical_share: float = 0.5

    def __post_init__(self) -> None:
        if not self.k1 >= 0 or not 0 <= self.b <= 1:  # NaN is neither
            raise UserError("pipeline.scorer needs k1 ≥ 0 and b between 0 and 1.")
        if not 0 < self.critical_share <= 1:
            raise UserError(f"pipeline.scorer.critical_share={self.critical_share} must lie in (0, 1].")

    @property
    def name(self) -> str:
        """Name and parameters."""
        return f"bm25(k1={self.k1}, b={self.b}, critical_share={self.critical_share})"

    def score(self, question: str, chunks: Sequence[str]) -> list[float]:
        """BM25 of each chunk; 0 where it shares no stem with the question."""
        counts = [_stem_counts(chunk) for chunk in chunks]
        lengths = [sum(count.values()) for count in counts]
        mean_length = max(1.0, sum(lengths) / max(1, len(lengths)))
        scores = [0.0] * len(chunks)
        for stem in sorted(set(stems(question))):
            holding = sum(stem in count for count in counts)
            idf = math.log(1 + (len(chunks) - holding + 0.5) / (holding + 0.5))
            for i, count in enumerate(counts):
                norm = self.k1 * (1 - self.b + self.b * lengths[i] / mean_length)
                if count[stem]:
                    scores[i] += idf * count[stem] * (self.k1 + 1) / (count[stem] + norm)
        return scores

    def is_critical(self, scores: Sequence[float]) -> list[bool]:
        """At least `critical_share` of the best score, and not 0."""
        bar = self.critical_share * max(scores, default=0.0)
        return [score > 0 and score >= bar for score in scores]


@dataclass(frozen=True)
class TfIdf:
    """Cosine of the question's and a chunk's vectors of (1 + ln f) · ln((1 + n) / (1 + n_t)) over word stems.

    Attributes:
        critical_share: a chunk is critical from this share of the best score on.
    """

    critical_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.critical_share <= 1:
            raise UserError(f"pipeline.scorer.critical_share={self.critical_share} must lie in (0, 1].")

    @property
    def name(self) -> str:
        """Name and parameters."""
        return f"tfidf(critical_share={self.critical_share})"

    def score(self, question: str, chunks: Sequence[str]) -> list[float]:
        """Cosine of each chunk, 0 … 1; the chunks are the collection."""
        counts = [_stem_counts(chunk) for chunk in chunks]
        holding = Counter(stem for count in counts for stem in count)
        asked = self._vector(Counter(stems(question)), holding, len(chunks))
        return [_cosine(asked, self._vector(count, holding, len(chunks))) for count in counts]

    def is_critical(self, scores: Sequence[float]) -> list[bool]:
        """At least `critical_share` of the best score, and not 0."""
        bar = self.critical_share * max(scores, default=0.0)
        return [score > 0 and score >= bar for score in scores]

    @staticmethod
    def _vector(count: Counter[str], holding: Counter[str], chunks: int) -> dict[str, float]:
        return {
            stem: (1 + math.log(f)) * math.log((1 + chunks) / (1 + holding[stem]))
            for stem, f in count.items()
        }


def _cosine(first: dict[str, float], second: dict[str, float]) -> float:
    norm = math.sqrt(sum(v * v for v in first.values()) * sum(v * v for v in second.values()))
    dot = sum(value * second.get(stem, 0.0) for stem, value in sorted(first.items()))
    return dot / norm if norm else 0.0


# A chunk is met again by every question to its document, and those come one after the other; 11 KB a chunk.
@functools.lru_cache(maxsize=4096)
def _stem_counts(text: str) -> Counter[str]:
    return Counter(stems(text))


def stems(text: str) -> list[str]:
    """Lower-case words without stop words and without their commonest English endings."""
    words = _WORD.findall(text.lower())
    return [_stem(word) for word in words if word not in STOP_WORDS]


def _stem(word: str) -> str:
    """Drops plural, -ing, -ed and a final e, where a vowel stays before them: calls, calling, called → call."""
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = f"{word[:-3]}y" if word.endswith("ies") and len(word) > 4 else word[:-1]
    for ending in ("ing", "ed"):
        if word.endswith(ending) and re.search("[aeiouy]", word[: -len(ending)]):
            word = re.sub(r"([bdgmnprt])\1$", r"\1", word[: -len(ending)])
            break
    return word[:-1] if len(word) > 2 and word.endswith("e") else word
