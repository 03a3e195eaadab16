"""LOGO's data (arXiv 2410.18533, section 3.2): chunks → question → importance → answers → rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from typing import ClassVar

from align.core.display import progress_bar
from align.core.errors import UserError
from align.documents.chunking import Chunk, cut_document
from align.documents.loading import Document, load_documents
from align.generation.generators import Message, Request, Sampling, derive_seed
from align.generation.prompts import check_places, fill
from align.generation.stage import Workspace, run_stage
from align.synthesis.answers import trim_cut
from align.synthesis.logo.contexts import Contexts, choose_contexts
from align.synthesis.logo.relevance import Bm25, RelevanceScorer
from align.synthesis.logo.rows import Answered, Asked, Questions, build_row
from align.synthesis.logo.verdicts import AnswersToJudge, judge_answers
from align.synthesis.pipeline import Summary, at_least, check_share, write_rows


@dataclass(frozen=True)
class LogoPipeline:
    """Group `pipeline`; hydra_conf/pipeline/logo.yaml comments every key."""

    reads_documents: ClassVar[bool] = True

    question_prompt: str
    answer_prompt: str
    documents: str | None = "embedded"
    max_documents: int | None = None
    min_document_chunks: int = 2
    questions_per_document: int = 2
    question_leads: list[str] = field(default_factory=lambda: ["What", "How"])
    chunk_tokens: int = 512
    chunks_per_prompt: int = 16
    critical_chunks: int = 6
    rejected: int = 2
    temperature: float = 0.7
    top_p: float = 0.95
    min_new_tokens: int = 16
    max_new_tokens: int = 512
    max_question_tokens: int = 64
    chunk_separator: str = "\n\n"
    max_similarity: float = 0.9
    judge_prompt: str | None = None
    scorer: RelevanceScorer = field(default_factory=Bm25)

    def check(self) -> None:
        """Raises UserError for a value out of range or a contradiction, naming the key; reads nothing."""
        for key in (
            "min_document_chunks",
            "questions_per_document",
            "chunk_tokens",
            "critical_chunks",
            "rejected",
        ):
            at_least(key, getattr(self, key), 1)
        at_least("max_documents", 1 if self.max_documents is None else self.max_documents, 1)
        at_least("min_new_tokens", self.min_new_tokens, 0)
        at_least("max_new_tokens", self.max_new_tokens, max(1, self.min_new_tokens))
        at_least("max_question_tokens", self.max_question_tokens, 1)
        at_least("chunks_per_prompt", self.chunks_per_prompt, self.critical_chunks + 1)
        at_least("temperature", self.temperature, 0)
        for key in ("top_p", "max_similarity"):
            check_share(key, getattr(self, key))
        if not self.question_leads or not all(isinstance(lead, str) for lead in self.question_leads):
            raise UserError("pipeline.question_leads needs a list of strings; [''] leaves all to the model.")
        check_places("pipeline.question_prompt", self.question_prompt, ("passage",))
        check_places("pipeline.answer_prompt", self.answer_prompt, ("context", "question"))
        if self.judge_prompt is not None:
            check_places("pipeline.judge_prompt", self.judge_prompt, ("context", "question", "answer"))

    def read(self) -> list[Document]:
        """The documents; raises UserError where there are none."""
        return load_documents(self.documents)

    def run(self, documents: Sequence[Document], workspace: Workspace) -> Summary:
        """Every stage in turn; what an earlier start has finished is read from the disk."""
        library = self._cut(documents, workspace)
        asked = self._sources(library, workspace.seed)
        if not asked:
            raise UserError(
                f"pipeline.documents={self.documents}: no document has {self.min_document_chunks} chunks of "
                f"{self.chunk_tokens} tokens: lower pipeline.chunk_tokens or pipeline.min_document_chunks."
            )
        dropped: Counter[str] = Counter()
        questions = self._ask(asked, library, workspace)
        dropped.update(questions.dropped)
        answered = self._answer(questions.kept, library, workspace, dropped)
        judged = self._judge(answered, workspace, dropped)
        settings = self._settings(workspace)
        rows = [
            build_row(item, documents, settings, dropped, max_similarity=self.max_similarity)
            for item in judged
        ]
        kept = [row for row in rows if row is not None]
        counts = {
            "documents read": len(documents),
            "chunks": len(library.chunks),
            "chunks asked about": len(asked),
        }
        return Summary(
            path=write_rows(workspace.output, kept),
            rows=len(kept),
            counts=counts,
            dropped=dict(dropped),
        )

    def _cut(self, documents: Sequence[Document], workspace: Workspace) -> Library:
        by_document = []
        with progress_bar(workspace.console) as progress:
            for place, document in enumerate(progress.track(documents, description="chunks")):
                chunks = cut_document(document, place, workspace.tokenizer, chunk_tokens=self.chunk_tokens)
                by_document.append(chunks)
        return Library(by_document)

    def _sources(self, library: Library, seed: int) -> list[Asked]:
        """The chunks to ask of, in document order; short documents only fill prompts."""
        places = [i for i, own in enumerate(library.by_document) if len(own) >= self.min_document_chunks]
        if self.max_documents is not None and self.max_documents < len(places):
            places = sorted(random.Random(derive_seed(seed, "documents")).sample(places, self.max_documents))
        return [
            Asked(id=f"{chunk.id}/q", chunk=chunk)
            for place in places
            for chunk in self._draw(library.by_document[place], seed)
        ]

    def _draw(self, own: Sequence[Chunk], seed: int) -> list[Chunk]:
        """Chunks to ask of: those at least half full where there are enough, since headings make no question."""
        full = [chunk for chunk in own if 2 * chunk.tokens >= self.chunk_tokens]
        candidates = full if len(full) >= self.questions_per_document else own
        rng = random.Random(derive_seed(seed, own[0].id, "questions"))
        drawn = rng.sample(list(candidates), min(self.questions_per_document, len(candidates)))
        return sorted(drawn, key=lambda chunk: chunk.index)

    def _ask(self, asked: Sequence[Asked], library: Library, workspace: Workspace) -> Questions:
        """One question a chunk: the best of those drawn, one for each lead."""
        sampling = Sampling(self.temperature, self.top_p, 1, self.max_question_tokens)
        requests = []
        for item in asked:
            prompt = fill(self.question_prompt, {"passage": item.chunk.text})
            for j, lead in enumerate(self.question_leads):
                requests.append(self._request(f"{item.id}/{j}", prompt, sampling, workspace.seed, lead=lead))
        texts = iter(completion.text for completion in run_stage("questions", requests, workspace))
        questions = Questions()
        for item in asked:
            own = library.by_document[item.chunk.document]
            said = list(islice(texts, len(self.question_leads)))
            questions.add(item, said, own, self.scorer, leads=self.question_leads)
        return questions

    def _answer(
        self,
        questions: Sequence[tuple[Asked, str]],
        library: Library,
        workspace: Workspace,
        dropped: Counter[str],
    ) -> list[Answered]:
        """All answers of all rows as one stage, so that likes in length share batches."""
        chosen = [
            (item, question, self._contexts(item, question, library, workspace.seed))
            for item, question in questions
        ]
        usable = [entry for entry in chosen if entry[2].irrelevant]
        dropped["no irrelevant chunk"] += len(chosen) - len(usable)
        calls = [self._calls(*entry, workspace.seed) for entry in usable]
        completions = iter(run_stage("answers", [request for group in calls for request in group], workspace))
        return [
            Answered(item, question, contexts, tuple(group), tuple(islice(completions, len(group))))
            for (item, question, contexts), group in zip(usable, calls, strict=True)
        ]

    def _judge(
        self, answered: Sequence[Answered], workspace: Workspace, dropped: Counter[str]
    ) -> Sequence[Answered]:
        """With the judge's verdicts, where there is one; answers without a verdict stay and are counted."""
        if self.judge_prompt is None:
            return answered
        shown = [
            AnswersToJudge(
                item.asked.id,
                self.chunk_separator.join(chunk.text for chunk in item.contexts.critical),
                item.question,
                tuple(trim_cut(completion) for completion in item.completions),
            )
            for item in answered
        ]
        verdicts = judge_answers(shown, self.judge_prompt, workspace)
        dropped["nothing: the judge said neither yes nor no"] += sum(own.count(None) for own in verdicts)
        return [replace(item, verdicts=own) for item, own in zip(answered, verdicts, strict=True)]

    def _contexts(self, item: Asked, question: str, library: Library, seed: int) -> Contexts:
        rng = random.Random(derive_seed(seed, item.id, "contexts"))
        return choose_contexts(
            question,
            item.chunk,
            library.by_document[item.chunk.document],
            library.draw_foreign(item.chunk.document, 2 * self.chunks_per_prompt, rng),
            self.scorer,
            critical_chunks=self.critical_chunks,
            chunks_per_prompt=self.chunks_per_prompt,
            rejected=self.rejected,
            rng=rng,
        )

    def _calls(self, item: Asked, question: str, contexts: Contexts, seed: int) -> list[Request]:
        """The chosen answer's call, then those of the rejected ones."""
        sampling = Sampling(self.temperature, self.top_p, self.min_new_tokens, self.max_new_tokens)
        named = [("chosen", contexts.critical)]
        named += [(f"rejected{j}", chunks) for j, (_, chunks) in enumerate(contexts.rejected)]
        calls = []
        for name, chunks in named:
            context = self.chunk_separator.join(chunk.text for chunk in chunks)
            prompt = fill(self.answer_prompt, {"context": context, "question": question})
            calls.append(self._request(f"{item.id}/{name}", prompt, sampling, seed))
        return calls

    def _request(self, name: str, prompt: str, sampling: Sampling, seed: int, lead: str = "") -> Request:
        return Request(name, (Message("user", prompt),), sampling, derive_seed(seed, name), lead)

    def _settings(self, workspace: Workspace) -> dict[str, object]:
        """What every row records of the run."""
        return {
            "pipeline": "logo",
            "model": workspace.generator.name,
            "scorer": self.scorer.name,
            "judge": None if self.judge_prompt is None else workspace.generator.name,
            "seed": workspace.seed,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "min_new_tokens": self.min_new_tokens,
            "max_new_tokens": self.max_new_tokens,
        }


class Library:
    """All chunks of all documents.

    Args:
        by_document: the chunks of each document, in order.
    """

    def __init__(self, by_document: Sequence[Sequence[Chunk]]) -> None:
        self.by_document = by_document
        self.chunks = [chunk for own in by_document for chunk in own]
        self._offsets = [0, *accumulate(len(own) for own in by_document)]

    def draw_foreign(self, place: int, count: int, rng: random.Random) -> list[Chunk]:
        """Up to `count` chunks of documents other than the one at `place`."""
        first, last = self._offsets[place], self._offsets[place + 1]
        others = len(self.chunks) - (last - first)
        drawn = rng.sample(range(others), min(count, others))
        return [self.chunks[i if i < first else i + last - first] for i in drawn]
