"""Retrieval: one thing to find in a long prompt, over length × depth, with a heat map for each task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.evaluation.answers import contains_answer
from align.evaluation.ask import Sample, answer, user_request
from align.evaluation.haystacks import Found, KeyValue, MultiDocument, Needles, fit, token_counter
from align.evaluation.intervals import mean_interval
from align.evaluation.pictures import heat_map
from align.evaluation.suite import Evaluation, Result, at_least, grouped, plain

if TYPE_CHECKING:
    from align.generation.generators import Completion

TASKS = ("needles", "key_value", "multi_document")
TEMPLATE_MARGIN = 64  # tokens left for the chat template around a prompt


@dataclass(frozen=True)
class Retrieval:
    """Group `suite`; see hydra_conf/suite/retrieval.yaml."""

    tasks: list[str] = field(default_factory=lambda: ["needles"])
    lengths: list[int] = field(default_factory=lambda: [512, 1024, 2048, 4096, 8192])
    depths: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    samples: int = 2
    documents: str = "embedded"
    key_value_path: str | None = None
    multi_document_path: str | None = None
    max_new_tokens: int = 32

    def check(self) -> None:
        """Raises UserError for a value out of range or a missing file."""
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise UserError(f"suite.tasks={list(self.tasks)}: name some of {', '.join(TASKS)}.")
        at_least({"samples": self.samples, "max_new_tokens": self.max_new_tokens}, 1)
        shortest = TEMPLATE_MARGIN + self.max_new_tokens
        if not self.lengths or min(self.lengths) <= shortest:
            raise UserError(f"suite.lengths={list(self.lengths)}: name lengths above {shortest} tokens.")
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise UserError(f"suite.depths={list(self.depths)}: name depths from 0 (beginning) to 1 (end).")
        if "multi_document" in self.tasks and self.multi_document_path is None:
            raise UserError(
                "suite.multi_document_path is not set: the task multi_document needs a file of questions with "
                "their passages, such as nq-open-oracle.jsonl.gz of nelson-liu/lost-in-the-middle."
            )
        for key in ("key_value_path", "multi_document_path"):
            path = getattr(self, key)
            if path is not None and not Path(path).expanduser().is_file():
                raise UserError(f"suite.{key}={path} does not exist: name a .jsonl or .jsonl.gz file.")

    def run(self, evaluation: Evaluation) -> Result:
        """Makes all prompts, asks, and looks for the accepted answers in what was said."""
        samples = self.make_samples(evaluation)
        completions = answer("retrieval", samples, evaluation)
        records = [_record(*pair) for pair in zip(samples, completions, strict=True)]
        seed = evaluation.workspace.seed
        own = {task: [record for record in records if record["task"] == task] for task in self.tasks}
        return Result(
            records=records,
            scores={
                task: mean_interval([record["found"] for record in own[task]], seed=seed)
                for task in self.tasks
            },
            details={
                "by_length": {task: plain(grouped(own[task], "found", "length")) for task in self.tasks},
                "by_depth": {task: plain(grouped(own[task], "found", "depth")) for task in self.tasks},
            },
            pictures={f"{task}.png": self._picture(task, own[task]) for task in self.tasks},
        )

    def make_samples(self, evaluation: Evaluation) -> list[Sample]:
        """`samples` prompts for each task, length and depth."""
        workspace = evaluation.workspace
        count = token_counter(workspace.tokenizer)
        return [
            self._sample(task, length, depth, i, workspace.seed, count)
            for task in self._makers(workspace.seed)
            for length, depth, i in product(self.lengths, self.depths, range(self.samples))
        ]

    def _makers(self, seed: int) -> list[Needles | KeyValue | MultiDocument]:
        makers: dict[str, Callable[[], Needles | KeyValue | MultiDocument]] = {
            "needles": lambda: Needles(self.documents, seed),
            "key_value": lambda: KeyValue(self.key_value_path, seed),
            "multi_document": lambda: MultiDocument(str(self.multi_document_path), seed),
        }
        return [makers[task]() for task in self.tasks]

    def _sample(
        self,
        task: Needles | KeyValue | MultiDocument,
        length: int,
        depth: float,
        index: int,
        seed: int,
        count: Callable[[str], int],
    ) -> Sample:
        """One prompt that, with its answer and the chat template, has about `length` tokens and no more."""
        name = f"{task.name}/{length}/{depth:g}/{index}"
        budget = length - self.max_new_tokens - TEMPLATE_MARGIN
        build, least, most = task.build(depth, index)
        found: Found = fit(
            build, count, budget=budget, least=least, most=most, where=f"suite.lengths={length}"
        )
        request = user_request(name, found.content, seed=seed, max_new_tokens=self.max_new_tokens)
        facts = {
            "task": task.name,
            "length": length,
            "tokens": count(found.content),
            "depth": depth,
            "answers": list(found.answers),
        }
        return Sample(request, facts)

    def _picture(self, task: str, records: Sequence[dict[str, Any]]) -> Any:
        cells: dict[tuple[str, str], list[float]] = {}
        for record in records:
            cells.setdefault((str(record["length"]), f"{record['depth']:.0%}"), []).append(record["found"])
        return heat_map(
            {cell: sum(values) / len(values) for cell, values in cells.items()},
            columns=[str(length) for length in self.lengths],
            rows=[f"{depth:.0%}" for depth in self.depths],
            labels=("tokens of the prompt", "depth"),
            title=f"{task.replace('_', ' ')}: found, {self.samples} a cell",
        )


def _record(sample: Sample, completion: Completion) -> dict[str, Any]:
    found = contains_answer(completion.text, sample.facts["answers"])
    return {"id": sample.id, **sample.facts, "prediction": completion.text, "found": float(found)}
