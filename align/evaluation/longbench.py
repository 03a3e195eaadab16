"""LongBench: any file in its format, asked and scored, or predictions made elsewhere scored (arXiv:2308.14508)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from align.core.config import check_choice
from align.core.errors import UserError
from align.core.readable import counted
from align.evaluation import longbench_metrics as metrics
from align.evaluation.ask import answer, cut_note
from align.evaluation.intervals import Measure, mean_interval, proportion_interval
from align.evaluation.longbench_asking import ASKING, Asking
from align.evaluation.longbench_rows import plain_task, rows_to_ask, rows_to_score, task_of
from align.evaluation.suite import Evaluation, Result, at_least
from align.evaluation.window import Window
from align.generation.prompts import check_places

# Shares of words or numbers have bounds; a class that is named or not is right or wrong.
SHARE = Measure(partial(mean_interval, bounds=(0.0, 1.0)), "higher")
CLASS = Measure(proportion_interval, "higher")


@dataclass(frozen=True)
class LongBench:
    """Group `suite`; see hydra_conf/suite/longbench.yaml."""

    paths: list[str] = field(default_factory=list)
    predictions: list[str] = field(default_factory=list)
    settings: str = "own"
    prompts: dict[str, str] = field(default_factory=dict)
    prompts_path: str | None = None
    max_new_tokens: dict[str, int] = field(default_factory=dict)
    max_length: int = 8192
    limit: int | None = None

    @property
    def asks(self) -> bool:
        """Whether the model is asked; predictions were made elsewhere."""
        return bool(self.paths)

    def check(self) -> None:
        """Raises UserError for a missing file, an unknown task, prompts without their places or no room for them."""
        if bool(self.paths) == bool(self.predictions):
            raise UserError(
                "suite.paths (rows to ask) or suite.predictions (answers to score) has to name .jsonl files, and "
                "only one of them."
            )
        for path in (*self.paths, *self.predictions):
            if not Path(path).expanduser().is_file():
                raise UserError(f"{path} does not exist: name a .jsonl file of LongBench's.")
            if plain_task(task_of(path)) not in metrics.METRICS:
                raise UserError(
                    f"{path}: its name is no task of LongBench: use {', '.join(metrics.METRICS)} (.jsonl)."
                )
        check_choice("suite.settings", self.settings, tuple(ASKING))
        if self.prompts_path is not None and not Path(self.prompts_path).expanduser().is_file():
            raise UserError(f"suite.prompts_path={self.prompts_path} does not exist: name a .json file.")
        for name, prompt in self.prompts.items():
            check_places(f"suite.prompts.{name}", prompt, ("context",))
        if "default" not in self.prompts or "default" not in self.max_new_tokens:
            raise UserError("suite.prompts and suite.max_new_tokens need an entry `default`.")
        at_least({f"max_new_tokens.{name}": value for name, value in self.max_new_tokens.items()}, 1)
        at_least({"max_length": self.max_length}, 2)
        at_least({"limit": self.limit}, 1)
        self._asking().check([plain_task(task_of(path)) for path in self.paths])

    def _asking(self) -> Asking:
        return ASKING[self.settings](self.prompts, self.prompts_path, self.max_new_tokens, self.max_length)

    def run(self, evaluation: Evaluation) -> Result:
        """Scores predictions as the published scorer does; asks for them first where rows are given."""
        asking = self._asking()
        records = self._ask(asking, evaluation) if self.asks else self._read_predictions()
        scores: dict[str, list[float]] = {}
        for record in records:
            scores.setdefault(record["task"], []).append(record["score"])
        return Result(
            records=records,
            scores={task: _measure(task).of(values) for task, values in scores.items()},
            details={
                "settings": asking.content() if self.asks else {"answers": "made elsewhere"},
                "longbench": {task: metrics.task_score(values) for task, values in scores.items()},
                "longbench_e": _by_bucket(records),
            },
            notes=self._notes(asking, records),
        )

    def _read_predictions(self) -> list[dict[str, Any]]:
        return [
            _record(task_of(path), f"{task_of(path)}/{i}", row["pred"], row)
            for path in self.predictions
            for i, (_, row) in enumerate(rows_to_score(path, self.limit))
        ]

    def _ask(self, asking: Asking, evaluation: Evaluation) -> list[dict[str, Any]]:
        rows = [(task_of(path), row) for path in self.paths for _, row in rows_to_ask(path, self.limit)]
        window = Window(evaluation.workspace)
        samples = [asking.sample(i, task, row, window) for i, (task, row) in enumerate(rows)]
        completions = answer(
            "longbench", samples, evaluation, shorter="lower suite.max_length or suite.max_new_tokens"
        )
        return [
            _record(task, sample.id, said.text, row)
            | {"prompt_cut": sample.facts["prompt_cut"], "cut": said.finish == "length"}
            for (task, row), sample, said in zip(rows, samples, completions, strict=True)
        ]

    def _notes(self, asking: Asking, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """How it was asked, and what was cut; nothing of answers made elsewhere, of which nobody knows."""
        if not self.asks:
            return []
        cut = sum(record["prompt_cut"] for record in records)
        prompts = (
            f"{cut} of {counted(len(records), 'prompt')} had their middle cut out, to fit "
            f"suite.max_length={self.max_length}."
        )
        return [asking.note(), *([prompts] if cut else []), *cut_note(records, asking.most_tokens)]


def _measure(task: str) -> Measure:
    return CLASS if plain_task(task) in metrics.CLASSES else SHARE


def _record(task: str, name: str, prediction: str, row: Mapping[str, Any]) -> dict[str, Any]:
    score: Callable[..., float] = metrics.score
    value = score(task, prediction, [str(text) for text in row["answers"]], row.get("all_classes"))
    return {
        "id": name,
        "task": task,
        "prediction": prediction,
        "answers": row["answers"],
        "length": row.get("length"),
        "score": value,
    }


def _by_bucket(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """LongBench-E's table: task → bucket → score, for rows that tell their length."""
    table: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record["length"] is not None:
            buckets = table.setdefault(record["task"], {name: [] for name in metrics.BUCKETS})
            buckets[metrics.bucket(int(record["length"]))].append(record["score"])
    return {
        task: {name: metrics.task_score(values) for name, values in buckets.items() if values}
        for task, buckets in table.items()
    }
