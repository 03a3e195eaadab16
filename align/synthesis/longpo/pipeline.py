"""LongPO's data (arXiv 2502.13922, section 4): chunks → four questions → one → a short and a long answer → rows."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from align.core.errors import UserError
from align.documents.loading import Document, load_documents
from align.generation.generators import Completion, Message, Request, Sampling, derive_seed
from align.generation.prompts import PromptEncoder, check_places, encoder_of, fill
from align.generation.stage import Dialogue, Workspace, run_dialogues
from align.synthesis.answers import comparable, describe_call, trim_cut
from align.synthesis.filters import answer_problem
from align.synthesis.longpo.numbered import parse_numbered
from align.synthesis.longpo.windows import Window, WindowSizes, cut_windows
from align.synthesis.pipeline import Summary, at_least, check_share, write_rows

if TYPE_CHECKING:
    from align.documents.chunking import Chunk

QUESTIONS = 4  # asked for of each chunk, one of which is picked (paper)
TURN_ROOM = 160  # tokens of a row kept for each turn's question and template


# Of one context: how many chunks were asked about, an entry for each turn that is kept, why others are not.
Outcome = tuple[int, list[dict[str, Any]], Counter[str]]


@dataclass(frozen=True)
class LongPOPipeline:
    """Group `pipeline`; hydra_conf/pipeline/longpo.yaml comments every key."""

    reads_documents: ClassVar[bool] = True

    question_prompt: str
    lead_ins: list[str]
    documents: str | None = None
    max_documents: int | None = None
    target_length: int = 131072
    context_min_tokens: int = 65536
    chunk_min_tokens: int = 16384
    chunk_max_tokens: int = 30000
    max_chunks: int | None = 4
    contexts_per_document: int | None = None
    turns: int = 4
    short_window: int | None = 32768
    question_start: str = ""
    question_temperature: float = 0.7
    question_top_p: float = 0.9
    max_question_tokens: int = 1024
    answer_prompt: str = "{context}\n\n{question}"
    answer_temperature: float = 0.0
    answer_top_p: float = 1.0
    max_new_tokens: int = 1024
    max_repetition_chosen: float = 0.90
    max_repetition_rejected: float = 0.95
    chunk_separator: str = "\n\n"
    block_rows: int = 256

    def check(self) -> None:
        """Raises UserError for a value out of range or a contradiction, naming the key; reads nothing."""
        for key in ("chunk_min_tokens", "turns", "max_question_tokens", "max_new_tokens", "block_rows"):
            at_least(key, getattr(self, key), 1)
        for key in ("max_documents", "contexts_per_document", "short_window"):
            at_least(key, 1 if getattr(self, key) is None else getattr(self, key), 1)
        at_least("max_chunks", 2 if self.max_chunks is None else self.max_chunks, 2)
        at_least("chunk_max_tokens", self.chunk_max_tokens, self.chunk_min_tokens)
        for key in ("question", "answer"):
            at_least(f"{key}_temperature", getattr(self, f"{key}_temperature"), 0)
            check_share(f"{key}_top_p", getattr(self, f"{key}_top_p"))
        for key in ("max_repetition_chosen", "max_repetition_rejected"):
            check_share(key, getattr(self, key))
        if self.context_min_tokens > self._context_max:
            raise UserError(
                f"pipeline.context_min_tokens={self.context_min_tokens} leaves no context: of target_length="
                f"{self.target_length}, {self.turns} turns of {self.max_new_tokens} + {TURN_ROOM} tokens leave "
                f"{self._context_max}: raise target_length or lower turns, max_new_tokens or context_min_tokens."
            )
        if not self.lead_ins or not all(isinstance(words, str) for words in self.lead_ins):
            raise UserError("pipeline.lead_ins needs a list of strings; [''] puts nothing before questions.")
        check_places("pipeline.question_prompt", self.question_prompt, ("chunk",))
        check_places("pipeline.answer_prompt", self.answer_prompt, ("context", "question"))

    def read(self) -> list[Document]:
        """The documents; raises UserError where there are none."""
        return load_documents(self.documents)

    def run(self, documents: Sequence[Document], workspace: Workspace) -> Summary:
        """Every stage in turn, `block_rows` contexts at a time; what an earlier start has finished is kept."""
        dropped: Counter[str] = Counter()
        counts: Counter[str] = Counter({"documents read": len(documents)})
        windows = cut_windows(
            self._order(documents, workspace.seed),
            workspace.tokenizer,
            self._sizes,
            dropped,
            limit=self.max_documents,
        )
        path = write_rows(workspace.output, self._rows(windows, workspace, counts, dropped))
        rows = counts.pop("rows", 0)
        return Summary(path=path, rows=rows, counts=dict(counts), dropped=dict(dropped), method="longpo")

    def _rows(
        self, windows: Iterator[Window], workspace: Workspace, counts: Counter[str], dropped: Counter[str]
    ) -> Iterator[dict[str, Any]]:
        # Before any call: a tokenizer without a chat template counts nothing.
        counts_rows = self.short_window is not None
        encode = encoder_of(workspace.generator, workspace.tokenizer) if counts_rows else None
        number = 0
        while block := list(islice(windows, self.block_rows)):
            dialogues = [self._dialogue(window, workspace, encode) for window in block]
            outcomes = run_dialogues(f"contexts-{number:04}", dialogues, workspace)
            for window, (asked, turns, lost) in zip(block, outcomes, strict=True):
                counts.update({"contexts": 1, "chunks asked about": asked, "turns": len(turns)})
                dropped.update(lost)
                if turns:
                    counts["rows"] += 1
                    yield self._row(window, turns, workspace)
            number += 1
        if not counts["contexts"]:
            raise UserError(
                f"pipeline.documents={self.documents}: no document has two chunks of {self.chunk_min_tokens} to "
                f"{self.chunk_max_tokens} tokens and {self.context_min_tokens} in all: lower chunk_min_tokens, "
                "chunk_max_tokens or context_min_tokens, or give longer documents."
            )

    @property
    def _context_max(self) -> int:
        return self.target_length - self.turns * (self.max_new_tokens + TURN_ROOM)

    @property
    def _sizes(self) -> WindowSizes:
        return WindowSizes(
            self.chunk_min_tokens,
            self.chunk_max_tokens,
            self.max_chunks,
            self.context_min_tokens,
            self._context_max,
            self.contexts_per_document,
        )

    def _order(self, documents: Sequence[Document], seed: int) -> Sequence[Document]:
        """As they come; where only `max_documents` are used, in an order drawn by the seed."""
        if self.max_documents is None:
            return documents
        return random.Random(derive_seed(seed, "documents")).sample(documents, len(documents))

    def _dialogue(
        self, window: Window, workspace: Workspace, encode: PromptEncoder | None
    ) -> Dialogue[Outcome]:
        """The calls of one context: its chunks' questions, then all answers; each chunk and the whole are read once."""
        rng = random.Random(derive_seed(workspace.seed, window.id, "turns"))
        drawn = rng.sample(window.chunks, min(self.turns, len(window.chunks)))
        asked = sorted(drawn, key=lambda chunk: chunk.index)
        dropped: Counter[str] = Counter()
        texts = yield [self._question_call(chunk, workspace.seed) for chunk in asked]
        picked = [
            (chunk, self._pick(chunk, completion.text, workspace.seed))
            for chunk, completion in zip(asked, texts, strict=True)
        ]
        turns = [(chunk, question) for chunk, question in picked if question is not None]
        dropped[f"no {QUESTIONS} numbered questions"] += len(picked) - len(turns)
        whole = self.chunk_separator.join(chunk.text for chunk in window.chunks)
        calls = [
            self._answer_call(f"{chunk.id}/{name}", context, question, workspace.seed)
            for chunk, question in turns
            for name, context in (("chosen", chunk.text), ("rejected", whole))
        ]
        answers = yield calls
        kept = []
        for place, (chunk, question) in enumerate(turns):
            pair = slice(2 * place, 2 * place + 2)
            problem = self._problem(len(encode(calls[pair][0])) if encode else 0, *answers[pair])
            if problem is None:
                kept.append(_describe_turn(chunk, question, calls[pair], answers[pair]))
            else:
                dropped[problem] += 1
        return len(asked), kept, dropped

    def _pick(self, chunk: Chunk, text: str, seed: int) -> str | None:
        """One of the four questions, behind a lead-in; None where there are no four."""
        found = parse_numbered(text, QUESTIONS)
        if found is None:
            return None
        rng = random.Random(derive_seed(seed, chunk.id, "question"))
        asking = [question for question in found if re.search("[?？]", question)]
        picked = rng.choice(asking or found)
        return f"{rng.choice(self.lead_ins)} {picked}".strip()

    def _problem(self, short_prompt: int, chosen: Completion, rejected: Completion) -> str | None:
        """Why a turn is left out, or None."""
        for name, completion, limit in (
            ("chosen", chosen, self.max_repetition_chosen),
            ("rejected", rejected, self.max_repetition_rejected),
        ):
            problem = answer_problem(trim_cut(completion), max_repetition=limit)
            if problem is not None:
                return f"{name} answer: {problem}"
        if comparable(trim_cut(chosen)) == comparable(trim_cut(rejected)):
            return "chosen equal to rejected"
        longest = short_prompt + max(chosen.tokens, rejected.tokens) + 1
        if self.short_window is not None and longest > self.short_window:
            return "short row over short_window"
        return None

    def _row(self, window: Window, turns: Sequence[dict[str, Any]], workspace: Workspace) -> dict[str, Any]:
        return {
            "id": window.id,
            "context": [chunk.text for chunk in window.chunks],
            **{
                column: [turn[column] for turn in turns]
                for column in ("questions", "chosens", "rejecteds", "short_prompts", "asked_of", "calls")
            },
            "document": {"id": window.document.id, "source": window.document.source},
            "chunks": [
                {"id": chunk.id, "start": chunk.start, "tokens": chunk.tokens} for chunk in window.chunks
            ],
            "settings": {
                "pipeline": "longpo",
                "model": workspace.generator.name,
                "seed": workspace.seed,
                "target_length": self.target_length,
                "answer_temperature": self.answer_temperature,
                "answer_top_p": self.answer_top_p,
                "max_new_tokens": self.max_new_tokens,
            },
        }

    def _question_call(self, chunk: Chunk, seed: int) -> Request:
        sampling = Sampling(self.question_temperature, self.question_top_p, 1, self.max_question_tokens)
        prompt = fill(self.question_prompt, {"chunk": chunk.text})
        name = f"{chunk.id}/questions"
        return Request(
            name, (Message("user", prompt),), sampling, derive_seed(seed, name), self.question_start
        )

    def _answer_call(self, name: str, context: str, question: str, seed: int) -> Request:
        sampling = Sampling(self.answer_temperature, self.answer_top_p, 1, self.max_new_tokens)
        prompt = fill(self.answer_prompt, {"context": context, "question": question})
        return Request(name, (Message("user", prompt),), sampling, derive_seed(seed, name))


def _describe_turn(
    chunk: Chunk, question: str, calls: Sequence[Request], answers: Sequence[Completion]
) -> dict[str, Any]:
    """One entry of each of the row's lists."""
    return {
        "questions": question,
        "chosens": trim_cut(answers[0]),
        "rejecteds": trim_cut(answers[1]),
        "short_prompts": chunk.text,
        "asked_of": chunk.id,
        "calls": {
            "chosen": describe_call(calls[0], answers[0]),
            "rejected": describe_call(calls[1], answers[1]),
        },
    }
