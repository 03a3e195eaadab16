"""The best scorer of relevance that is installed."""

from __future__ import annotations

import importlib.util

from align.synthesis.logo.relevance import Bm25, RelevanceScorer
from align.synthesis.logo.spacy_relevance import SpacyOverlap


def auto_scorer(model: str = "en_core_web_lg") -> RelevanceScorer:
    """LOGO's own scorer where spaCy and the named model are installed, else BM25; nothing is downloaded."""
    installed = all(importlib.util.find_spec(name) is not None for name in ("spacy", model))
    return SpacyOverlap(model=model) if installed else Bm25()
