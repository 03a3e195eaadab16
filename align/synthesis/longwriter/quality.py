"""How good an answer is beside its length: by a judge model, or by checks that need none."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from align.core.config import check_choice
from align.core.errors import UserError
from align.generation.generators import Generator, GeneratorSettings, Message, Request, Sampling, derive_seed
from align.generation.prompts import check_places, fill
from align.generation.stage import Dialogue, Workspace, run_dialogues
from align.models.settings import ModelSettings
from align.scores.judgement import JUDGE_PROMPT, MARKS, parse_judgement, quality_score
from align.synthesis.filters import repeated_ngrams
from align.synthesis.longwriter.writing_plan import is_step_line
from align.synthesis.pipeline import at_least, check_share

if TYPE_CHECKING:
    from align.synthesis.longwriter.candidates import Candidate
    from align.synthesis.longwriter.instructions import Instruction

WORDS_A_PARAGRAPH = 400  # an answer of more words than this should have more than one paragraph
_WHOLE_END = re.compile(r"[.!?。！？…:)\]}\"'”’）】*`|-]\s*$")


@dataclass(frozen=True)
class Quality:
    """What is known of an answer's quality.

    Attributes:
        score: 0 … 100; None where no judgement could be had.
        by: `judge` or `checks`.
        details: the marks, or what each check found.
    """

    score: float | None
    by: str
    details: Mapping[str, Any] = field(default_factory=dict)


class QualityScorer(Protocol):
    """What the group `pipeline/quality` instantiates."""

    def check(self) -> None:
        """Raises UserError for a value out of range; loads nothing."""

    def score(
        self, stage: str, items: Sequence[tuple[str, Instruction, Candidate]], workspace: Workspace
    ) -> list[Quality]:
        """The quality of each answer, in order; `items` name it, what was asked, and the answer."""


@dataclass(frozen=True)
class Checks:
    """Repetition and structure; hydra_conf/pipeline/quality/checks.yaml.

    Attributes:
        ngram: words of the n-grams whose repetition counts against an answer.
    """

    ngram: int = 4

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        at_least("quality.ngram", self.ngram, 1)

    def score(
        self, stage: str, items: Sequence[tuple[str, Instruction, Candidate]], workspace: Workspace
    ) -> list[Quality]:
        """Half repetition, half structure: see `structure`."""
        return [self._score(candidate) for _, _, candidate in items]

    def _score(self, candidate: Candidate) -> Quality:
        repeated = repeated_ngrams(candidate.text, size=self.ngram)
        parts = structure(candidate)
        score = 100 * ((1 - repeated) + sum(parts.values()) / len(parts)) / 2
        details = {"repeated_ngrams": round(repeated, 4), **{name: round(v, 4) for name, v in parts.items()}}
        return Quality(round(score, 4), "checks", details)


def structure(candidate: Candidate) -> dict[str, float]:
    """Each 0 … 1: it ends whole, has the paragraphs that its length wants, and repeats no line of a plan."""
    lines = [line for line in candidate.text.splitlines() if line.strip()]
    wanted = max(1, round(candidate.words / WORDS_A_PARAGRAPH))
    return {
        "ends_whole": float(candidate.whole and bool(_WHOLE_END.search(candidate.text))),
        "paragraphs": min(1.0, len(lines) / wanted),
        "free_of_plan": 1 - sum(map(is_step_line, lines)) / max(1, len(lines)),
    }


@dataclass(frozen=True)
class Judge:
    """A model's S_q; hydra_conf/pipeline/quality/judge.yaml comments every key."""

    prompt: str = JUDGE_PROMPT
    marks: str = "whole"
    tries: int = 3
    temperature: float = 0.5
    top_p: float = 0.9
    max_new_tokens: int = 1024
    model: str | None = None
    generator: GeneratorSettings | None = None

    def check(self) -> None:
        """Raises UserError for a value out of range, or a judge model without its generator."""
        for key in ("tries", "max_new_tokens"):
            at_least(f"quality.{key}", getattr(self, key), 1)
        check_choice("pipeline.quality.marks", self.marks, MARKS)
        at_least("quality.temperature", self.temperature, 0)
        check_share("quality.top_p", self.top_p)
        check_places("pipeline.quality.prompt", self.prompt, ("instruction", "answer"))
        if (self.model is None) != (self.generator is None):
            raise UserError(
                "pipeline.quality.model and pipeline.quality.generator belong together: set both for a judge of its "
                "own, or neither to let the model judge that writes."
            )
        if self.generator is not None:
            self.generator.check()

    def score(
        self, stage: str, items: Sequence[tuple[str, Instruction, Candidate]], workspace: Workspace
    ) -> list[Quality]:
        """One judgement an answer, asked for again with another draw while it cannot be read."""
        judge = Workspace(
            workspace.output,
            workspace.seed,
            workspace.tokenizer,
            self._generator(workspace),
            workspace.console,
        )
        dialogues = [self._judge(*item, workspace.seed) for item in items]
        return run_dialogues(f"judge-{stage}", dialogues, judge, together=len(dialogues))

    def _generator(self, workspace: Workspace) -> Generator:
        return self._own_generator or workspace.generator

    @functools.cached_property
    def _own_generator(self) -> Generator | None:
        """Opened once, so that a model in this process is loaded once for all blocks; None without one."""
        if self.generator is None or self.model is None:
            return None
        from align.models.loading import load_tokenizer

        return self.generator.open(ModelSettings(path=self.model), load_tokenizer(self.model))

    def _judge(self, name: str, item: Instruction, candidate: Candidate, seed: int) -> Dialogue[Quality]:
        prompt = fill(self.prompt, {"instruction": item.text, "answer": candidate.text})
        sampling = Sampling(self.temperature, self.top_p, 1, self.max_new_tokens)
        for attempt in range(self.tries):
            call = f"{name}/judge{attempt}"
            (completion,) = yield [
                Request(call, (Message("user", prompt),), sampling, derive_seed(seed, call))
            ]
            marks = parse_judgement(completion.text, marks=self.marks)
            if marks is not None:
                return Quality(quality_score(marks), "judge", {"marks": marks, "tries": attempt + 1})
        return Quality(None, "judge", {"tries": self.tries})
