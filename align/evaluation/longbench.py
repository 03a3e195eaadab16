"""LongBench: any file in its format, asked and scored, or predictions made elsewhere scored (arXiv:2308.14508)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from align.core.config import check_choice
from align.core.errors import UserError
from align.evaluation import longbench_metrics as metrics
from align.evaluation.ask import answer
from align.evaluation.files import read_places
from align.evaluation.intervals import Measure, mean_interval, proportion_interval
from align.evaluation.longbench_asking import ASKING, Asking
from align.evaluation.suite import Evaluation, Result, at_least
from align.evaluation.window import Window
from align.generation.prompts import check_places

COLUMNS = ("context", "input", "answers")
PREDICTION_COLUMNS = ("pred", "answers")
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
            if _name(task_of(path)) not in metrics.METRICS:
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
        self._asking().check([_name(task_of(path)) for path in self.paths])

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
            notes=[asking.note()] if self.asks else [],
        )

    def _read_predictions(self) -> list[dict[str, Any]]:
        found = []
        for path in self.predictions:
            task = task_of(path)
            for i, (where, row) in enumerate(read_places(path, PREDICTION_COLUMNS)[: self.limit]):
                if not isinstance(row["pred"], str):
                    raise UserError(f"{where}: `pred` has to be a text.")
                _check_row(task, row, where)
                found.append(_record(task, f"{task}/{i}", row["pred"], row))
        return found

    def _ask(self, asking: Asking, evaluation: Evaluation) -> list[dict[str, Any]]:
        rows = [
            (task_of(path), where, row)
            for path in self.paths
            for where, row in read_places(path, COLUMNS)[: self.limit]
        ]
        for task, where, row in rows:
            _check_row(task, row, where)
        window = Window(evaluation.workspace)
        samples = [asking.sample(i, task, row, window) for i, (task, _, row) in enumerate(rows)]
        completions = answer(
            "longbench", samples, evaluation, shorter="lower suite.max_length or suite.max_new_tokens"
        )
        return [
            _record(task, sample.id, completion.text, row)
            for (task, _, row), sample, completion in zip(rows, samples, completions, strict=True)
        ]


def task_of(path: str) -> str:
    """A LongBench file is named after its task."""
    return Path(path).name.split(".")[0]


def _name(task: str) -> str:
    """LongBench-E has the tasks of LongBench."""
    return task.removesuffix("_e")


def _measure(task: str) -> Measure:
    return CLASS if _name(task) in metrics.CLASSES else SHARE


def _check_row(task: str, row: Mapping[str, Any], where: str) -> None:
    """Refuses a row that cannot be scored, before anything is asked."""
    if not isinstance(row["answers"], list) or not all(
        isinstance(text, str | int) for text in row["answers"]
    ):
        raise UserError(f"{where}: `answers` has to be a list of texts.")
    place = metrics.PLACES.get(_name(task))
    if place is not None and not all(re.search(place, str(text)) for text in row["answers"]):
        shape = place.replace(r"(\d+)", "N")
        raise UserError(f"{where}: an answer has to name `{shape}`.")
    if _name(task) in metrics.CLASSES and not row.get("all_classes"):
        raise UserError(
            f"{where}: `all_classes` is missing, the classes of {task} that a prediction may name; without them "
            "every score would be 0. They are in LongBench's own files."
        )


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
