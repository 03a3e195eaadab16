"""Which chunks each text of a LOGO row is made from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.documents.chunking import Chunk

if TYPE_CHECKING:
    from align.synthesis.logo.relevance import RelevanceScorer

# What rejected answers are generated from, in turn; LOGO: nothing relevant, and half of it.
REJECTED_KINDS = ("irrelevant", "mixed")


@dataclass(frozen=True)
class Contexts:
    """The chunks of one row, each tuple in document order.

    Attributes:
        critical: what the chosen answer is generated from.
        irrelevant: what fills the training prompt; other documents' chunks where the own has too few.
        rejected: (kind, chunks) of each rejected answer, chunks of the training prompt all.
        scores: chunk id → importance, for every chunk of the training prompt.
    """

    critical: tuple[Chunk, ...]
    irrelevant: tuple[Chunk, ...]
    rejected: tuple[tuple[str, tuple[Chunk, ...]], ...]
    scores: dict[str, float]

    @property
    def prompt(self) -> tuple[Chunk, ...]:
        """The training prompt's chunks."""
        return in_order([*self.critical, *self.irrelevant])


def choose_contexts(
    question: str,
    asked_of: Chunk | None,
    own: Sequence[Chunk],
    foreign: Sequence[Chunk],
    scorer: RelevanceScorer,
    *,
    critical_chunks: int,
    chunks_per_prompt: int,
    rejected: int,
    rng: random.Random,
) -> Contexts:
    """Splits chunks by importance and draws the row's contexts; all chunks are scored in one call.

    The chunk that the question was asked of is critical whatever its score. Chunks that count as critical
    beyond `critical_chunks`, or in other documents, are left out: they would make a wrong answer right.

    Args:
        question: what is asked.
        asked_of: the chunk that it was asked of, one of `own`; None for a question from elsewhere, which
            is judged by the scorer alone.
        own: the document's chunks.
        foreign: candidates from other documents.
        scorer: importance.
        critical_chunks: most critical chunks.
        chunks_per_prompt: N, chunks of the training prompt, more than `critical_chunks`.
        rejected: M ≥ 1.
        rng: of this row alone.

    Returns:
        Contexts; without `irrelevant` chunks (and `rejected`) where there are none.
    """
    pool = [*own, *foreign]
    scores = dict(zip(pool, scorer.score(question, [chunk.text for chunk in pool]), strict=True))
    flags = dict(zip(pool, scorer.is_critical(list(scores.values())), strict=True))
    ranked = sorted(
        (chunk for chunk in own if flags[chunk] and chunk != asked_of),
        key=lambda chunk: (-scores[chunk], chunk.index),
    )
    given = [] if asked_of is None else [asked_of]
    critical = in_order([*given, *ranked[: critical_chunks - len(given)]])
    irrelevant = _filler(
        [chunk for chunk in own if not flags[chunk] and chunk != asked_of],
        [chunk for chunk in foreign if not flags[chunk]],
        chunks_per_prompt - len(critical),
        rng,
    )
    kinds = [REJECTED_KINDS[i % len(REJECTED_KINDS)] for i in range(rejected if irrelevant else 0)]
    return Contexts(
        critical=critical,
        irrelevant=irrelevant,
        rejected=tuple((kind, _rejected_context(kind, critical, irrelevant, rng)) for kind in kinds),
        scores={chunk.id: scores[chunk] for chunk in (*critical, *irrelevant)},
    )


def in_order(chunks: Sequence[Chunk]) -> tuple[Chunk, ...]:
    """In document order."""
    return tuple(sorted(chunks, key=lambda chunk: chunk.order))


def _filler(
    own: Sequence[Chunk], foreign: Sequence[Chunk], room: int, rng: random.Random
) -> tuple[Chunk, ...]:
    """Up to `room` chunks, the document's own before others'."""
    drawn = rng.sample(own, min(room, len(own)))
    drawn += rng.sample(foreign, min(room - len(drawn), len(foreign)))
    return in_order(drawn)


def _rejected_context(
    kind: str, critical: Sequence[Chunk], irrelevant: Sequence[Chunk], rng: random.Random
) -> tuple[Chunk, ...]:
    """As many chunks as the chosen answer saw, two at least: irrelevant only, or half of them critical."""
    size = max(2, len(critical))
    kept = rng.sample(critical, size // 2) if kind == "mixed" else []
    return in_order([*kept, *rng.sample(irrelevant, min(size - len(kept), len(irrelevant)))])
