"""Retrieval: one thing to find in a long prompt, over length × depth, with a heat map for each task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.core.readable import counted
from align.evaluation.answers import contains_answer, first_line, never_found
from align.evaluation.ask import Sample, answer, cut_note, user_request
from align.evaluation.files import check_file
from align.evaluation.haystacks import Found, KeyValue, MultiDocument, Needles, fit, token_counter
from align.evaluation.intervals import Measure, proportion_interval
from align.evaluation.pictures import heat_map
from align.evaluation.suite import Evaluation, Result, at_least, grouped, plain, score_of
from align.evaluation.window import Window

if TYPE_CHECKING:
    from align.generation.generators import Completion

TASKS = ("needles", "key_value", "multi_document")
FIRST_LINE = ("multi_document",)  # of these only the first line counts, as in the published scorer
TEMPLATE_MARGIN = 64  # tokens left for the chat template around a prompt, more where it is longer
SEAMS = 8  # tokens: what stands beside the template may come out as a few more
FULL = 0.9  # of the tokens asked for: what a prompt has to have to stand for its length
FOUND = Measure(proportion_interval, "higher")


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
            if path is not None:
                check_file(f"suite.{key}", path)

    def run(self, evaluation: Evaluation) -> Result:
        """Makes all prompts, asks, and looks for the accepted answers in what was said."""
        made = self.make_samples(evaluation)
        samples = [sample for sample in made if is_full(sample)]
        notes = too_short(made)
        for note in notes:
            evaluation.workspace.console.print(note, soft_wrap=True, highlight=False, markup=False)
        if not samples:
            raise UserError(
                f"suite.lengths={list(self.lengths)}: {notes[0]} Name smaller lengths, or more to read."
            )
        completions = answer("retrieval", samples, evaluation, shorter="name smaller suite.lengths")
        records = [_record(*pair) for pair in zip(samples, completions, strict=True)]
        own = {task: [record for record in records if record["task"] == task] for task in self.tasks}
        return Result(
            records=records,
            scores={
                task: score_of(own[task], "found", FOUND, independent="unit")
                for task in self.tasks
                if own[task]
            },
            details={f"by_{axis}": self._by(axis, own) for axis in ("length", "depth")},
            pictures={f"{task}.png": self._picture(task, own[task]) for task in self.tasks if own[task]},
            notes=[
                *notes,
                *cut_note(records, f"suite.max_new_tokens={self.max_new_tokens}"),
                *never_found(records),
            ],
        )

    def _by(self, axis: str, own: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        return {
            task: plain(grouped(own[task], "found", axis, FOUND, independent="unit")) for task in self.tasks
        }

    def make_samples(self, evaluation: Evaluation) -> list[Sample]:
        """`samples` prompts for each task, length and depth, those that stay short of their length too."""
        workspace = evaluation.workspace
        count = token_counter(workspace.tokenizer)
        around = max(TEMPLATE_MARGIN, Window(workspace).template + SEAMS)
        return [
            self._sample(task, length, depth, i, workspace.seed, count, around)
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
        around: int,
    ) -> Sample:
        """One prompt that, with its answer and the chat template, has about `length` tokens and no more."""
        name = f"{task.name}/{length}/{depth:g}/{index}"
        budget = length - self.max_new_tokens - around
        hay = task.hay_of(length, depth, index)
        found: Found = fit(
            hay.build, count, budget=budget, least=hay.least, most=hay.most, where=f"suite.lengths={length}"
        )
        request = user_request(name, found.content, seed=seed, max_new_tokens=self.max_new_tokens)
        facts = {
            "task": task.name,
            "length": length,
            "tokens": count(found.content),
            "budget": budget,
            "depth": depth,
            "unit": hay.unit,
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
            title=f"{task.replace('_', ' ')}: found, {self.samples} a cell (grey: not asked)"
            if len(cells) < len(self.lengths) * len(self.depths)
            else f"{task.replace('_', ' ')}: found, {self.samples} a cell",
        )


def is_full(sample: Sample) -> bool:
    """Whether a prompt has so many tokens that it may stand for the length that was asked for."""
    return bool(sample.facts["tokens"] >= FULL * sample.facts["budget"])


def too_short(samples: Sequence[Sample]) -> list[str]:
    """A sentence for each task and length of which prompts stay too short: these are not asked."""
    all_of = Counter((sample.facts["task"], sample.facts["length"]) for sample in samples)
    short: dict[tuple[str, int], list[int]] = {}
    for sample in samples:
        if not is_full(sample):
            short.setdefault((sample.facts["task"], sample.facts["length"]), []).append(
                sample.facts["tokens"]
            )
    return [
        f"{task}, {length} tokens: {len(tokens)} of {counted(all_of[task, length], 'prompt')} are not asked, since "
        f"what there is to read gives them {max(tokens)} tokens at most; cells without any stay grey."
        for (task, length), tokens in short.items()
    ]


def _record(sample: Sample, completion: Completion) -> dict[str, Any]:
    said = first_line(completion.text) if sample.facts["task"] in FIRST_LINE else completion.text
    return {
        "id": sample.id,
        **sample.facts,
        "prediction": completion.text,
        "cut": completion.finish == "length" and said == completion.text,
        "found": float(contains_answer(said, sample.facts["answers"])),
    }
