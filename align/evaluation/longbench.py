"""LongBench: any file in its format, asked and scored, or predictions made elsewhere scored (arXiv:2308.14508)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.evaluation import longbench_metrics as metrics
from align.evaluation.ask import Sample, answer, user_request
from align.evaluation.haystacks import read_rows
from align.evaluation.intervals import mean_interval
from align.evaluation.suite import Evaluation, Result, at_least
from align.generation.prompts import check_places, fill

COLUMNS = ("context", "input", "answers")
PREDICTION_COLUMNS = ("pred", "answers")


@dataclass(frozen=True)
class LongBench:
    """Group `suite`; see hydra_conf/suite/longbench.yaml."""

    paths: list[str] = field(default_factory=list)
    predictions: list[str] = field(default_factory=list)
    prompts: dict[str, str] = field(default_factory=dict)
    max_new_tokens: dict[str, int] = field(default_factory=dict)
    max_length: int = 8192
    limit: int | None = None

    def check(self) -> None:
        """Raises UserError for a missing file, an unknown task or prompts without their places."""
        if bool(self.paths) == bool(self.predictions):
            raise UserError(
                "suite.paths (rows to ask) or suite.predictions (answers to score) has to name .jsonl files, and "
                "only one of them."
            )
        for path in (*self.paths, *self.predictions):
            if not Path(path).expanduser().is_file():
                raise UserError(f"{path} does not exist: name a .jsonl file of LongBench's.")
            task = task_of(path)
            if task.removesuffix("_e") not in metrics.METRICS:
                raise UserError(
                    f"{path}: its name is no task of LongBench: use {', '.join(metrics.METRICS)} (.jsonl)."
                )
        for name, prompt in self.prompts.items():
            check_places(f"suite.prompts.{name}", prompt, ("context",))
        if "default" not in self.prompts or "default" not in self.max_new_tokens:
            raise UserError("suite.prompts and suite.max_new_tokens need an entry `default`.")
        at_least({"max_length": self.max_length, "limit": 1 if self.limit is None else self.limit}, 1)

    def run(self, evaluation: Evaluation) -> Result:
        """Scores predictions as the published scorer does; asks for them first where rows are given."""
        records = self._read_predictions() if self.predictions else self._ask(evaluation)
        scores: dict[str, list[float]] = {}
        for record in records:
            scores.setdefault(record["task"], []).append(record["score"])
        seed = evaluation.workspace.seed
        return Result(
            records=records,
            scores={task: mean_interval(values, seed=seed) for task, values in scores.items()},
            details={
                "longbench": {task: metrics.task_score(values) for task, values in scores.items()},
                "longbench_e": _by_bucket(records),
            },
        )

    def _read_predictions(self) -> list[dict[str, Any]]:
        return [
            _record(task_of(path), f"{task_of(path)}/{i}", row["pred"], row)
            for path in self.predictions
            for i, row in enumerate(read_rows(path, PREDICTION_COLUMNS)[: self.limit])
        ]

    def _ask(self, evaluation: Evaluation) -> list[dict[str, Any]]:
        tokenizer = evaluation.workspace.tokenizer
        rows = [(task_of(path), row) for path in self.paths for row in read_rows(path, COLUMNS)[: self.limit]]
        samples = [self._sample(i, task, row, tokenizer) for i, (task, row) in enumerate(rows)]
        completions = answer("longbench", samples, evaluation)
        return [
            _record(task, sample.id, completion.text, row)
            for (task, row), sample, completion in zip(rows, samples, completions, strict=True)
        ]

    def _sample(self, index: int, task: str, row: Mapping[str, Any], tokenizer: Any) -> Sample:
        """The task's prompt, its middle cut out where it is too long, as the published code does."""
        name = task.removesuffix("_e")
        new_tokens = self.max_new_tokens.get(name, self.max_new_tokens["default"])
        prompt = self.prompts.get(name, self.prompts["default"])
        content = fill(prompt, {"context": str(row["context"]), "input": str(row["input"])})
        content = cut_middle(content, tokenizer, self.max_length - new_tokens)
        return Sample(
            user_request(f"{task}/{index}", content, seed=0, max_new_tokens=new_tokens), {"task": task}
        )


def task_of(path: str) -> str:
    """A LongBench file is named after its task."""
    return Path(path).name.split(".")[0]


def cut_middle(text: str, tokenizer: Any, most: int) -> str:
    """Half of `most` tokens from either end of a longer text."""
    encoding = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    offsets: Sequence[tuple[int, int]] = encoding["offset_mapping"]
    if len(offsets) <= most:
        return text
    half = most // 2
    return text[: offsets[half - 1][1]] + text[offsets[len(offsets) - half][0] :]


def _record(task: str, name: str, prediction: str, row: Mapping[str, Any]) -> dict[str, Any]:
    score: Callable[..., float] = metrics.score
    value = score(task, prediction, row["answers"], row.get("all_classes"))
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
