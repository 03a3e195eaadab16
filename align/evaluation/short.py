"""What must not get worse: short-context tasks, through lm-eval (extra `lm-eval`), and held-out short pairs."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.data.sources import open_sources
from align.evaluation.ask import wait_for_all
from align.evaluation.intervals import Measure, mean_interval, proportion_interval
from align.evaluation.preference import COMPARED, single_note
from align.evaluation.stored import StoredRecords
from align.evaluation.suite import Evaluation, Result, at_least, numbers_only
from align.generation.generators import digest_of
from align.generation.stage import WORK
from align.training.metric_names import METRICS

PAIRS = "pairs"  # their name among the tasks
SHARES = (
    "acc",
    "acc_norm",
    "acc_mutual_info",
    "exact_match",
    "em",
)  # metrics of lm-eval that are right or wrong


@dataclass(frozen=True)
class Short:
    """Group `suite`; see hydra_conf/suite/short.yaml."""

    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    pairs: str | None = None

    def check(self) -> None:
        """Raises UserError without tasks and pairs, for a file or folder that is not there, or without lm-eval."""
        if not self.tasks and self.pairs is None:
            raise UserError(
                "suite.tasks is empty: name tasks of lm-eval or of yours (suite.include_path), or rows (suite.pairs)."
            )
        if self._folder is not None and not self._folder.is_dir():
            raise UserError(f"suite.include_path={self.include_path} is no folder of lm-eval task files.")
        at_least({"batch_size": self.batch_size, "limit": self.limit}, 1)
        if self.pairs is not None:
            open_sources(self.pairs, key="suite.pairs")
        if self.tasks and importlib.util.find_spec("lm_eval") is None:
            raise UserError("suite.tasks needs lm-eval: `pip install 'long-preference[lm-eval]'`.")

    def run(self, evaluation: Evaluation) -> Result:
        """Every task in turn, then the pairs; what is finished is read from the disk."""
        found = {
            task: self._kept(self._content(task), evaluation, partial(self._measure, task))
            for task in self.tasks
        }
        if self.pairs is not None:
            pairs = open_sources(self.pairs, key="suite.pairs").train
            content = [PAIRS, [source.identity() for source in pairs]]
            found[PAIRS] = self._kept(content, evaluation, self._compare)
        records = [record for part in found.values() for record in part["records"]]
        better = {name: way for part in found.values() for name, way in part.get("better", {}).items()}
        values: dict[tuple[str, str], list[float]] = {}
        for record in records:
            for metric, value in record["scores"].items():
                values.setdefault((record["task"], metric), []).append(value)
        return Result(
            records=records,
            scores={
                f"{task}/{metric}": _measure_of(task, metric, better).of(own)
                for (task, metric), own in values.items()
            },
            notes=[note for part in found.values() for note in part.get("notes", ())],
            details={"lm_eval": {task: found[task]["results"] for task in self.tasks}},
        )

    @property
    def _folder(self) -> Path | None:
        """Of one's own tasks, `~` resolved."""
        return None if self.include_path is None else Path(self.include_path).expanduser()

    def _content(self, task: str) -> list[Any]:
        """What decides on a task's results beside the model: the settings, and the files of tasks of one's own."""
        folder = self._folder
        files = [] if folder is None else sorted(path for path in folder.rglob("*") if path.is_file())
        return [
            task,
            asdict(self),
            [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        ]

    def _kept(
        self, content: list[Any], evaluation: Evaluation, measure: Callable[[Evaluation], dict[str, Any]]
    ) -> dict[str, Any]:
        """What `measure` gives, from the disk where the same content has been measured."""
        from accelerate import PartialState

        stored = StoredRecords(evaluation.workspace.output / WORK / "short", evaluation.weights())
        digest = digest_of(content)
        known = stored.get(digest)
        wait_for_all()  # all have looked before one writes: they measure together, or none
        if known is not None:
            return known
        found = measure(evaluation)
        if PartialState().is_main_process:
            stored.put(digest, found)
        wait_for_all()
        return stored[digest]

    def _compare(self, evaluation: Evaluation) -> dict[str, Any]:
        """The rewards of `pairs`, by the group `method`, on the training forward."""
        assert self.pairs is not None
        pairs = evaluation.score_pairs(self.pairs)
        records = [
            {"id": f"{PAIRS}/{row['source']}", "task": PAIRS, "scores": scores}
            for values, row in zip(pairs.metrics, pairs.rows, strict=True)
            if (scores := {name: float(values[METRICS.index(name)]) for name in COMPARED})
            and not math.isnan(scores["rewards/accuracies"])  # a row without a rejected answer
        ]
        if not records:
            raise UserError(f"suite.pairs={self.pairs}: no row has a rejected answer: nothing to prefer.")
        return {"records": records, "notes": single_note("suite.pairs", len(records), len(pairs.rows))}

    def _measure(self, task: str, evaluation: Evaluation) -> dict[str, Any]:
        """lm-eval's results and each sample's numbers."""
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=None if self._folder is None else str(self._folder))
        if task not in manager.all_tasks:
            raise UserError(f"suite.tasks: lm-eval knows no task {task}, and suite.include_path holds none.")
        model = evaluation.load()
        tokenizer = evaluation.workspace.tokenizer
        found: Any = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch_size),
            tasks=[task],
            task_manager=manager,
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            log_samples=True,
            random_seed=evaluation.workspace.seed,
        )
        records = [
            {"id": f"{name}/{sample['doc_id']}", "task": name, "scores": _numbers(sample, sample["metrics"])}
            for name, samples in found["samples"].items()
            for sample in samples
        ]
        better = {
            f"{name}/{metric}": "higher" if higher else "lower"
            for name, metrics in (found.get("higher_is_better") or {}).items()
            for metric, higher in metrics.items()
            if higher is not None
        }
        return {"results": _json_values(found["results"]), "records": records, "better": better}


def _measure_of(task: str, metric: str, better: Mapping[str, Any]) -> Measure:
    """What a score is: lm-eval tells which values are better, of its own tasks."""
    if task == PAIRS:
        return COMPARED[metric]
    interval = proportion_interval if metric in SHARES else mean_interval
    return Measure(interval, better.get(f"{task}/{metric}"))


def _numbers(sample: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    """The metrics of a sample that are plain numbers; corpus metrics keep tuples, which only lm-eval adds up."""
    return {name: float(sample[name]) for name in metrics if isinstance(sample.get(name), (int, float))}


def _json_values(results: Mapping[str, Any]) -> dict[str, Any]:
    found, _ = numbers_only(json.loads(json.dumps(results, default=str)))
    return dict(found)
