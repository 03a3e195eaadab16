"""Relevance as LOGO has it: entities, nouns and verbs that question and chunk share (needs the extra `spacy`)."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.core.errors import UserError

CONTENT_WORDS = ("NOUN", "PROPN", "VERB")


@dataclass(frozen=True)
class SpacyOverlap:
    """Number of entities, noun lemmas and verb lemmas in common (LOGO, arXiv 2410.18533, section 3.2).

    Attributes:
        model: a spaCy pipeline that is installed; the paper uses en_core_web_lg.
        threshold: a chunk is critical from this many common terms on (paper: δ = 6).

    Raises:
        UserError: spaCy or its model is not installed.
    """

    model: str = "en_core_web_lg"
    threshold: int = 6

    def __post_init__(self) -> None:
        if importlib.util.find_spec("spacy") is None:
            raise UserError(
                "pipeline.scorer=SpacyOverlap needs spaCy: `pip install 'long-preference[spacy]'` "
                f"and `python -m spacy download {self.model}`, or keep the default scorer."
            )
        _load(self.model)

    @property
    def name(self) -> str:
        """Name and parameters."""
        return f"spacy_overlap(model={self.model}, threshold={self.threshold})"

    def score(self, question: str, chunks: Sequence[str]) -> list[float]:
        """Size of the overlap of each chunk's terms with the question's."""
        wanted = _terms(self.model, question)
        return [float(len(wanted & _terms(self.model, chunk))) for chunk in chunks]

    def is_critical(self, scores: Sequence[float]) -> list[bool]:
        """At least `threshold` terms in common."""
        return [score >= self.threshold for score in scores]


@functools.lru_cache(maxsize=1)
def _load(model: str) -> Any:
    """The spaCy pipeline, loaded once a process."""
    import spacy

    try:
        return spacy.load(model)
    except OSError as error:
        raise UserError(
            f"pipeline.scorer.model={model} is not installed: `python -m spacy download {model}`."
        ) from error


@functools.lru_cache(maxsize=100_000)  # a chunk is met again by every question to its document
def _terms(model: str, text: str) -> frozenset[str]:
    """Entities in lower case and lemmas of content words."""
    parsed = _load(model)(text)
    lemmas = {token.lemma_.lower() for token in parsed if token.pos_ in CONTENT_WORDS}
    return frozenset(lemmas | {entity.text.lower() for entity in parsed.ents})
