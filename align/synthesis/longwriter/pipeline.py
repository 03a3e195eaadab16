"""LongWriter's data (arXiv 2408.07055): long answers to instructions, scored, as SFT rows or as pairs for DPO."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from align.core.config import check_choice
from align.core.errors import UserError
from align.generation.generators import Message, Request, Sampling, derive_seed
from align.generation.stage import Dialogue, Workspace, run_dialogues
from align.scores.length import length_score, required_length
from align.synthesis.answers import comparable, describe_call
from align.synthesis.longwriter.agent_write import AgentWrite
from align.synthesis.longwriter.candidates import Candidate, Written, from_completion
from align.synthesis.longwriter.instructions import Instruction, load_instructions
from align.synthesis.longwriter.quality import Checks, Quality, QualityScorer
from align.synthesis.longwriter.self_lengthen import SelfLengthen
from align.synthesis.pipeline import Summary, at_least, check_share, write_rows

if TYPE_CHECKING:
    from align.documents.loading import Document

ROWS = ("sft", "dpo")


@dataclass(frozen=True)
class Scored:
    """An answer with its scores.

    Attributes:
        candidate: the answer.
        length: S_l, 0 … 100; None where no length is required.
        quality: see `Quality`; its score is not None.
        score: both together, 0 … 100.
    """

    candidate: Candidate
    length: float | None
    quality: Quality
    score: float


@dataclass(frozen=True)
class LongWriterPipeline:
    """Group `pipeline`; hydra_conf/pipeline/longwriter.yaml comments every key."""

    agent_write: AgentWrite
    self_lengthen: SelfLengthen
    quality: QualityScorer = field(default_factory=Checks)
    instructions: str | None = None
    max_instructions: int | None = None
    rows: str = "dpo"
    sampled: int = 4
    agent_written: int = 0
    self_lengthened: int = 0
    temperature: float = 0.5
    top_p: float = 0.9
    max_new_tokens: int = 32768
    length_weight: float = 0.5
    min_length_score: float | None = None
    block_rows: int = 256

    def check(self) -> None:
        """Raises UserError for a value out of range or a contradiction, naming the key; reads nothing."""
        check_choice("pipeline.rows", self.rows, ROWS)
        for key in ("sampled", "agent_written", "self_lengthened"):
            at_least(key, getattr(self, key), 0)
        at_least("max_instructions", 1 if self.max_instructions is None else self.max_instructions, 1)
        for key in ("max_new_tokens", "block_rows"):
            at_least(key, getattr(self, key), 1)
        at_least("temperature", self.temperature, 0)
        check_share("top_p", self.top_p)
        if not 0 <= self.length_weight <= 1:
            raise UserError(f"pipeline.length_weight={self.length_weight} must lie in [0, 1].")
        if self.min_length_score is not None and not 0 <= self.min_length_score <= 100:
            raise UserError(f"pipeline.min_length_score={self.min_length_score} must lie in [0, 100].")
        wanted = 2 if self.rows == "dpo" else 1
        if self.sampled + self.agent_written + self.self_lengthened < wanted:
            raise UserError(
                f"pipeline.rows={self.rows} needs {wanted} answers an instruction: raise sampled, agent_written or "
                "self_lengthened."
            )
        if self.self_lengthened and not self.sampled:
            raise UserError(
                "pipeline.self_lengthened extends sampled answers: set pipeline.sampled from 1 on."
            )
        if self.self_lengthened > self.sampled > 0:
            raise UserError(
                f"pipeline.self_lengthened={self.self_lengthened} extends more answers than are sampled "
                f"({self.sampled}): lower it, or raise pipeline.sampled."
            )
        for part in (self.agent_write, self.self_lengthen, self.quality):
            part.check()

    def read(self) -> list[Document]:
        """The instructions; raises UserError where there are none."""
        return list(load_instructions(self.instructions))

    def run(self, documents: Sequence[Document], workspace: Workspace) -> Summary:
        """Every stage in turn, `block_rows` instructions at a time; what an earlier start has finished is kept."""
        items = [item for item in documents if isinstance(item, Instruction)]
        if self.max_instructions is not None and self.max_instructions < len(items):
            rng = random.Random(derive_seed(workspace.seed, "instructions"))
            items = [items[i] for i in sorted(rng.sample(range(len(items)), self.max_instructions))]
        counts: Counter[str] = Counter({"instructions": len(items)})
        dropped: Counter[str] = Counter()
        path = write_rows(workspace.output, self._rows(items, workspace, counts, dropped))
        rows = counts.pop("rows", 0)
        method = f"longwriter_{self.rows}"
        return Summary(path=path, rows=rows, counts=dict(counts), dropped=dict(dropped), method=method)

    def _rows(
        self,
        items: Sequence[Instruction],
        workspace: Workspace,
        counts: Counter[str],
        dropped: Counter[str],
    ) -> Iterator[dict[str, Any]]:
        for start in range(0, len(items), self.block_rows):
            block = items[start : start + self.block_rows]
            stage = f"{start // self.block_rows:04}"
            dialogues = [self._write(item, workspace.seed) for item in block]
            written = run_dialogues(f"answers-{stage}", dialogues, workspace, together=len(dialogues))
            for result in written:
                counts.update(result.counts)
                dropped.update(result.dropped)
            for item, scored in self._scored(stage, block, written, workspace, counts, dropped):
                row = self._row(item, scored, workspace, dropped)
                if row is not None:
                    counts["rows"] += 1
                    yield row

    def _write(self, item: Instruction, seed: int) -> Dialogue[Written]:
        """All answers to one instruction: the samples share their prompt, so that it is read once."""
        written = Written()
        found: list[Candidate | None] = []
        sampling = Sampling(self.temperature, self.top_p, 1, self.max_new_tokens)
        calls = []
        for j in range(self.sampled):
            name = f"{item.id}/sampled{j}"
            calls.append(Request(name, (Message("user", item.text),), sampling, derive_seed(seed, name)))
        if calls:
            completions = yield calls
            for call, completion in zip(calls, completions, strict=True):
                sample = from_completion(completion, "sampled", describe_call(call, completion))
                written.dropped["sampled: empty answer"] += sample is None
                found.append(sample)
        for j, sample in enumerate([sample for sample in found if sample][: self.self_lengthened]):
            name = f"{item.id}/lengthened{j}"
            found.append((yield from self.self_lengthen.lengthen(item, sample, name, seed, written)))
        for j in range(self.agent_written):
            name = f"{item.id}/agent{j}"
            found.append((yield from self.agent_write.write(item, name, seed, written)))
        seen: set[str] = set()
        for candidate in found:
            if candidate is not None and comparable(candidate.text) in seen:
                written.dropped["answer equal to another"] += 1
            elif candidate is not None:
                seen.add(comparable(candidate.text))
                written.candidates.append(candidate)
                written.counts[f"answers: {candidate.source}"] += 1
        return written

    def _scored(
        self,
        stage: str,
        block: Sequence[Instruction],
        written: Sequence[Written],
        workspace: Workspace,
        counts: Counter[str],
        dropped: Counter[str],
    ) -> Iterator[tuple[Instruction, list[Scored]]]:
        """The answers of each instruction with their scores, the best first; those without a judgement are counted."""
        pairs = [
            (f"{item.id}/{j}", item, candidate)
            for item, result in zip(block, written, strict=True)
            for j, candidate in enumerate(result.candidates)
        ]
        qualities = iter(self.quality.score(stage, pairs, workspace) if pairs else [])
        for item, result in zip(block, written, strict=True):
            scored = []
            for candidate in result.candidates:
                one = self._score(item, candidate, next(qualities))
                dropped["answer without a readable judgement"] += one is None
                if one is not None:
                    scored.append(one)
            counts["answers scored"] += len(scored)
            yield item, sorted(scored, key=lambda one: -one.score)

    def _score(self, item: Instruction, candidate: Candidate, quality: Quality) -> Scored | None:
        """S_l and quality, weighted; quality alone where no length is required."""
        if quality.score is None:
            return None
        if item.length is None:
            return Scored(candidate, None, quality, quality.score)
        length = length_score(item.length, candidate.words)
        both = self.length_weight * length + (1 - self.length_weight) * quality.score
        return Scored(candidate, length, quality, both)

    def _row(
        self, item: Instruction, scored: Sequence[Scored], workspace: Workspace, dropped: Counter[str]
    ) -> dict[str, Any] | None:
        """The row, or None, counted, where nothing is left of it."""
        wanted = 2 if self.rows == "dpo" else 1
        if len(scored) < wanted:
            dropped[f"instruction with fewer than {wanted} answers"] += 1
            return None
        best = scored[0]
        if self.min_length_score is not None:
            if required_length(item.text) is None:
                dropped["instruction that does not state exactly one length"] += 1
                return None
            if best.length is None or best.length < self.min_length_score:
                dropped["best answer below min_length_score"] += 1
                return None
        prompt = [{"role": "user", "content": item.text}]
        chosen = [{"role": "assistant", "content": best.candidate.text}]
        common = {
            "instruction": {"source": item.source, "required_words": item.length},
            "answers": [_describe(one) for one in scored],
            "settings": self._settings(workspace),
        }
        if self.rows == "sft":
            return {"id": item.id, "messages": [*prompt, *chosen], "score": best.score, **common}
        worse = [one for one in scored if one.score < best.score]
        if not worse:
            dropped["answers that all score the same"] += 1
            return None
        other = random.Random(derive_seed(workspace.seed, item.id, "rejected")).choice(worse)
        return {
            "id": item.id,
            "prompt": prompt,
            "chosen": chosen,
            "rejected": [{"role": "assistant", "content": other.candidate.text}],
            "score": best.score,
            "margin": best.score - other.score,
            "rejected_place": scored.index(other),
            **common,
        }

    def _settings(self, workspace: Workspace) -> dict[str, object]:
        """What every row records of the run."""
        return {
            "pipeline": "longwriter",
            "model": workspace.generator.name,
            "seed": workspace.seed,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "length_weight": self.length_weight,
        }


def _describe(one: Scored) -> dict[str, Any]:
    """An answer's scores, the best answer's first in the row."""
    return {
        "source": one.candidate.source,
        "words": one.candidate.words,
        "length_score": one.length,
        "quality_score": one.quality.score,
        "quality_by": one.quality.by,
        "quality": dict(one.quality.details),
        "score": one.score,
        "made": dict(one.candidate.record),
    }
