"""From what the model said to a row that trains and can be audited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rapidfuzz import fuzz

from align.documents.chunking import Chunk
from align.generation.generators import Completion, Request
from align.synthesis.answers import comparable, describe_call, trim_cut
from align.synthesis.logo.contexts import Contexts
from align.synthesis.logo.questions import parse_question

if TYPE_CHECKING:
    from align.documents.loading import Document
    from align.synthesis.logo.relevance import RelevanceScorer


@dataclass(frozen=True)
class Asked:
    """A chunk of which a question is asked; `id` names the row."""

    id: str
    chunk: Chunk


@dataclass(frozen=True)
class Answered:
    """Everything of a row before the filters; the chosen answer's call comes first.

    `verdicts` say of each answer whether a judge found it right; empty without a judge.
    """

    asked: Asked
    question: str
    contexts: Contexts
    requests: tuple[Request, ...]
    completions: tuple[Completion, ...]
    verdicts: tuple[bool | None, ...] = ()


class Questions:
    """The questions kept so far and why others were not.

    Attributes:
        kept: chunks with their questions, no question twice in a document.
        dropped: reason → number of chunks that are left without a question.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[Asked, str]] = []
        self.dropped: Counter[str] = Counter()
        self._seen: set[tuple[int, str]] = set()

    def add(
        self,
        item: Asked,
        texts: Sequence[str],
        own: Sequence[Chunk],
        scorer: RelevanceScorer,
        *,
        leads: Sequence[str] = (),
    ) -> None:
        """Keeps, of the questions in the model's `texts`, the new one that has most to do with the chunk.

        `leads` are words that questions were asked to begin with.

        A question that has nothing in common with its chunk, by the scorer, is about something else (or
        about passages and questions in general, as small models like to ask).
        """
        read = [parse_question(text, leads=leads) for text in texts]
        found = [question for question in read if question is not None]
        scored = [(scorer.score(q, [chunk.text for chunk in own])[item.chunk.index], q) for q in found]
        about = [(score, q) for score, q in scored if score > 0]
        new = [(score, q) for score, q in about if (item.chunk.document, q.casefold()) not in self._seen]
        if new:
            question = max(new, key=lambda pair: pair[0])[1]
            self._seen.add((item.chunk.document, question.casefold()))
            self.kept.append((item, question))
        elif about:
            self.dropped["question asked before"] += 1
        else:
            self.dropped["question not about its chunk" if found else "no question"] += 1


def build_row(
    item: Answered,
    documents: Sequence[Document],
    settings: Mapping[str, object],
    dropped: Counter[str],
    *,
    max_similarity: float = 1.0,
) -> dict[str, Any] | None:
    """The row, or None where nothing is left to prefer; `dropped` counts why.

    Args:
        item: what was made of one question.
        documents: of the run.
        settings: recorded in the row.
        dropped: reason → number, counted up here.
        max_similarity: a rejected answer more like the chosen one than this is none (1 − normalised
            edit distance by insertions and deletions, 0 … 1).
    """
    texts = [trim_cut(completion) for completion in item.completions]
    if not comparable(texts[0]):
        dropped["empty chosen answer"] += 1
        return None
    if item.verdicts and item.verdicts[0] is False:
        dropped["judge: chosen answer wrong"] += 1
        return None
    kept = _kept_rejected(texts, item.verdicts, max_similarity, dropped)
    if not kept:
        dropped["no rejected answer left"] += 1
        return None
    calls = list(zip(item.requests, item.completions, strict=True))
    document = documents[item.asked.chunk.document]
    return {
        "id": item.asked.id,
        "context": [chunk.text for chunk in item.contexts.prompt],
        "question": item.question,
        "chosen": texts[0],
        "rejected": [texts[j] for j in kept],
        "rejected_kinds": [item.contexts.rejected[j - 1][0] for j in kept],
        "document": {"id": document.id, "source": document.source},
        "asked_of": item.asked.chunk.id,
        "chunks": _describe_chunks(item.contexts, documents),
        "chosen_chunks": [chunk.id for chunk in item.contexts.critical],
        "rejected_chunks": [[chunk.id for chunk in item.contexts.rejected[j - 1][1]] for j in kept],
        "chosen_call": describe_call(*calls[0]),
        "rejected_calls": [describe_call(*calls[j]) for j in kept],
        "settings": dict(settings),
    }


def _kept_rejected(
    texts: Sequence[str], verdicts: Sequence[bool | None], max_similarity: float, dropped: Counter[str]
) -> list[int]:
    """Places of the rejected answers (1 … M) that say something, and something else, and are not right."""
    chosen = comparable(texts[0])
    seen = {chosen}
    kept = []
    for j, text in enumerate(texts[1:], start=1):
        plain = comparable(text)
        if not plain:
            dropped["empty rejected answer"] += 1
        elif plain == chosen:
            dropped["rejected answer equal to the chosen"] += 1
        elif plain in seen:
            dropped["rejected answer met before"] += 1
        elif fuzz.ratio(plain, chosen) > 100 * max_similarity:
            dropped["rejected answer nearly equal to the chosen"] += 1
        elif verdicts and verdicts[j]:
            dropped["judge: rejected answer right"] += 1
        else:
            seen.add(plain)
            kept.append(j)
    return kept


def _describe_chunks(contexts: Contexts, documents: Sequence[Document]) -> list[dict[str, Any]]:
    """One entry a chunk of `context`, in its order."""
    return [
        {
            "id": chunk.id,
            "document": documents[chunk.document].id,
            "start": chunk.start,
            "tokens": chunk.tokens,
            "score": round(contexts.scores[chunk.id], 6),
            "critical": chunk in contexts.critical,
        }
        for chunk in contexts.prompt
    ]
