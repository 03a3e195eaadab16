"""Do the contexts that a scorer chooses hold the gold passage? Real questions and passages, no model.

python benchmarks/scorers.py                 # needs the folder $ALIGN_DATA; writes results/scorers.json

Documents are the gold passages of `multi_document_qa`, all in one pool. For each question a scorer sees the
question alone, and LOGO's `choose_contexts` splits the pool: at most 6 critical passages, from which the preferred
answer is made, and irrelevant ones.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align.documents.chunking import Chunk
from align.synthesis.logo.contexts import choose_contexts
from align.synthesis.logo.relevance import Bm25, RelevanceScorer, TfIdf
from align.synthesis.logo.spacy_relevance import SpacyOverlap

RESULTS = Path(__file__).parent / "results" / "scorers.json"
DATA = "multi_document_qa/nq-open-oracle.jsonl.gz"


@dataclass(frozen=True)
class Outcome:
    """Shares of the questions whose gold passage stands in each context.

    Attributes:
        preferred: among the critical passages.
        irrelevant_context: in the rejected answer's context of irrelevant passages.
        filler: among the training prompt's irrelevant passages.
        called_irrelevant: not critical by the scorer, whether drawn or not: the worst that a draw could do.
    """

    scorer: str
    questions: int
    passages: int
    preferred: float
    irrelevant_context: float
    filler: float
    called_irrelevant: float


def main() -> None:
    """Measures every scorer that is installed, prints the table and writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--passages", type=int, default=200, help="the first of the file, in one pool")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    pairs = read_pairs(Path(os.environ["ALIGN_DATA"]))
    scorers: list[RelevanceScorer] = [Bm25(), TfIdf()]
    if all(importlib.util.find_spec(name) for name in ("spacy", "en_core_web_lg")):
        scorers += [SpacyOverlap(), SpacyOverlap(threshold=2)]
    outcomes = [measure(scorer, pairs[: arguments.passages], arguments.questions) for scorer in scorers]
    print(f"{'scorer':<50} preferred  irrelevant context  filler  called irrelevant")
    for o in outcomes:
        print(
            f"{o.scorer:<50} {o.preferred:9.1%} {o.irrelevant_context:19.1%} {o.filler:7.1%} "
            f"{o.called_irrelevant:18.1%}"
        )
    arguments.output.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=2) + "\n")


def read_pairs(folder: Path) -> list[tuple[str, str]]:
    """(question, gold passage with its title) of each row."""
    with gzip.open(folder / DATA, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    golds = [next(context for context in row["ctxs"] if context["isgold"]) for row in rows]
    return [
        (row["question"], f"{gold['title']}\n{gold['text']}") for row, gold in zip(rows, golds, strict=True)
    ]


def measure(scorer: RelevanceScorer, pairs: Sequence[tuple[str, str]], questions: int) -> Outcome:
    """The shares over the first `questions` pairs; the pool is every different passage of all pairs."""
    texts = list(dict.fromkeys(passage for _, passage in pairs))
    pool = [Chunk(0, i, f"p#{i}", text, 0, len(text.split())) for i, text in enumerate(texts)]
    hits = {"preferred": 0, "irrelevant_context": 0, "filler": 0, "called_irrelevant": 0}
    for number, (question, passage) in enumerate(pairs[:questions]):
        gold = pool[texts.index(passage)]
        contexts = choose_contexts(
            question,
            None,
            pool,
            [],
            scorer,
            critical_chunks=6,
            chunks_per_prompt=16,
            rejected=2,
            rng=random.Random(number),
        )
        irrelevant = [chunks for kind, chunks in contexts.rejected if kind == "irrelevant"]
        flags = scorer.is_critical(scorer.score(question, texts))
        hits["preferred"] += gold in contexts.critical
        hits["irrelevant_context"] += any(gold in chunks for chunks in irrelevant)
        hits["filler"] += gold in contexts.irrelevant
        hits["called_irrelevant"] += not flags[gold.index]
    shares = {name: count / questions for name, count in hits.items()}
    return Outcome(scorer.name, questions, len(pool), **shares)


if __name__ == "__main__":
    main()
