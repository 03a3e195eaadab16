"""Importance of chunks: BM25 by hand, and what a person would call relevant comes first."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import types
from pathlib import Path

import pytest

from align.core.errors import UserError
from align.synthesis.logo.auto_relevance import auto_scorer
from align.synthesis.logo.relevance import Bm25, TfIdf, stems
from align.synthesis.logo.spacy_relevance import SpacyOverlap, _load, _terms


def test_bm25_by_hand():
    """Three chunks of 2, 1 and 3 stems (mean 2); `cat` stands in the first (twice) and the third (once).

    idf = ln(1 + (3 − 2 + ½)/(2 + ½)) = ln 1.6. First: f = 2, length 2 = mean, so 2·2.2/(2 + 1.2) · ln 1.6.
    Third: f = 1, norm = 1.2·(0.25 + 0.75·1.5) = 1.65, so 2.2/2.65 · ln 1.6.
    """
    scores = Bm25().score("What are cats?", ["cat cats", "dog", "cat dog bird"])
    assert scores == pytest.approx([math.log(1.6) * 4.4 / 3.2, 0.0, math.log(1.6) * 2.2 / 2.65])


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("How does the with statement call a context manager's exit method?", 0),
        ("Which exception is raised when a name is not found?", 1),
        ("What are slices used for?", 2),
    ],
)
def test_obviously_relevant_chunks_come_first(question, best):
    chunks = [
        "The with statement is used to wrap a block with methods defined by a context manager. On leaving, "
        "the manager's __exit__() is called.",
        "When a name is not found at all, a NameError exception is raised.",
        "A slicing selects a range of items in a sequence object, a string, tuple or list.",
        "The pass statement is a null operation: when it is executed, nothing happens.",
    ]
    scorer = Bm25()
    scores = scorer.score(question, chunks)
    assert max(range(4), key=scores.__getitem__) == best
    assert scorer.is_critical(scores)[best] and not scorer.is_critical(scores)[3]


def test_forms_of_a_word_share_a_stem():
    for forms in (
        "call calls called calling",
        "use uses used using",
        "query queries",
        "stop stopped stopping",
    ):
        assert len(set(stems(forms))) == 1, forms
    assert len(set(stems("string thing class this under bus"))) == 4  # `this` and `under` are stop words
    assert stems("语言 model") == ["语", "言", "model"]


def test_critical_is_a_share_of_the_best_and_never_0():
    assert Bm25(critical_share=0.5).is_critical([4.0, 2.0, 1.9, 0.0]) == [True, True, False, False]
    assert Bm25().is_critical([0.0, 0.0]) == [False, False]
    assert Bm25().is_critical([]) == []


@pytest.mark.parametrize("bad", [{"k1": -1}, {"k1": float("nan")}, {"b": 1.5}, {"critical_share": 0}])
def test_bad_parameters_are_refused(bad):
    with pytest.raises(UserError, match=r"pipeline\.scorer"):
        Bm25(**bad)


def test_spacy_absent_is_one_sentence_naming_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"long-preference\[spacy\]"):
        SpacyOverlap()


def test_spacy_overlap_counts_entities_nouns_and_verbs(monkeypatch):
    """A stand-in for spaCy tags capitalised words as entities and nouns, `…s` as verbs, all else as others."""

    def parse(text):
        def token(word):
            kind = "PROPN" if word[0].isupper() else "VERB" if word.endswith("s") else "ADP"
            return types.SimpleNamespace(lemma_=word.lower(), pos_=kind)

        words = text.split()
        entities = [types.SimpleNamespace(text=word) for word in words if word[0].isupper()]
        parsed = [token(word) for word in words]
        return type("Doc", (list,), {"ents": entities})(parsed)

    spacy = types.ModuleType("spacy")
    spacy.load = lambda model: parse
    spacy.__spec__ = importlib.util.spec_from_loader("spacy", loader=None)
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    _load.cache_clear()
    _terms.cache_clear()
    scorer = SpacyOverlap(threshold=2)
    scores = scorer.score("Python runs on", ["python runs", "Python runs on", "Java on"])
    assert scores == [1.0, 2.0, 0.0]
    assert scorer.is_critical(scores) == [False, True, False]
    _load.cache_clear()
    _terms.cache_clear()


def test_tfidf_by_hand():
    """Two chunks; `cat` stands in one, twice: weight (1 + ln 2) · ln(3/2); `dog` in both: ln(3/3) = 0.

    The question's only stem with a weight is `cat`, and the first chunk's too: cosine 1. The second has none: 0.
    A third chunk with `cat` and `bird` once each, equally rare, is at 45°: √½.
    """
    assert TfIdf().score("Which cat?", ["cat cats dog", "dog"]) == pytest.approx([1.0, 0.0])
    assert TfIdf().score("Which cat?", ["cat bird", "snow"]) == pytest.approx([math.sqrt(0.5), 0.0])
    assert TfIdf().is_critical([1.0, 0.4, 0.0]) == [True, False, False]
    with pytest.raises(UserError, match="critical_share"):
        TfIdf(critical_share=0.0)


def test_auto_takes_spacy_only_where_its_model_is_installed(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "no_model" else found(name))
    assert auto_scorer("no_model") == Bm25()
    taken = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("align.synthesis.logo.spacy_relevance._load", taken.append)
    assert auto_scorer("a_model") == SpacyOverlap(model="a_model") and "a_model" in taken


@pytest.mark.skipif("ALIGN_DATA" not in os.environ, reason="ALIGN_DATA is not set")
def test_on_real_questions_the_preferred_context_holds_the_gold_passage(monkeypatch):
    """200 questions of multi_document_qa: in at least 90 % of the rows, and at most 5 % of the irrelevant ones."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    scorers = importlib.import_module("scorers")
    pairs = scorers.read_pairs(Path(os.environ["ALIGN_DATA"]))[:200]
    outcome = scorers.measure(auto_scorer(), pairs, 200)
    print(outcome)
    assert outcome.preferred >= 0.9
    assert max(outcome.irrelevant_context, outcome.filler, outcome.called_irrelevant) <= 0.05
