"""What must not get worse: short-context tasks, through lm-eval (extra `lm-eval`)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.evaluation.statistics import mean_interval
from align.evaluation.suite import Evaluation, Result, at_least
from align.runfolder import write_atomically
from align.synthesis.stage import WORK


@dataclass(frozen=True)
class Short:
    """Group `suite`; see hydra_conf/suite/short.yaml."""

    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8

    def check(self) -> None:
        """Raises UserError without tasks, without the folder, or without lm-eval."""
        if not self.tasks:
            raise UserError("suite.tasks is empty: name tasks of lm-eval, or of yours in suite.include_path.")
        if self.include_path is not None and not Path(self.include_path).expanduser().is_dir():
            raise UserError(f"suite.include_path={self.include_path} is no folder of lm-eval task files.")
        at_least({"batch_size": self.batch_size, "limit": self.limit or 1}, 1)
        if importlib.util.find_spec("lm_eval") is None:
            raise UserError("suite=short needs lm-eval: `pip install 'long-preference[lm-eval]'`.")

    def run(self, evaluation: Evaluation) -> Result:
        """Every task in turn; a finished one is read from the disk."""
        seed = evaluation.workspace.seed
        records: list[dict[str, Any]] = []
        published: dict[str, Any] = {}
        for task in self.tasks:
            found = self._task(task, evaluation)
            published[task] = found["results"]
            records += found["records"]
        scores: dict[str, list[float]] = {}
        for record in records:
            for metric, value in record["scores"].items():
                scores.setdefault(f"{record['task']}/{metric}", []).append(value)
        return Result(
            records=records,
            scores={name: mean_interval(values, seed=seed) for name, values in scores.items()},
            details={"lm_eval": published},
        )

    def _task(self, task: str, evaluation: Evaluation) -> dict[str, Any]:
        path = evaluation.workspace.output / WORK / "short" / f"{task}.json"
        if not path.is_file():
            write_atomically(path, json.dumps(self._measure(task, evaluation)))
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def _measure(self, task: str, evaluation: Evaluation) -> dict[str, Any]:
        """lm-eval's results and each sample's numbers."""
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=self.include_path)
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
        return {"results": _json_values(found["results"]), "records": records}


def _numbers(sample: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    """The metrics of a sample that are plain numbers; corpus metrics keep tuples, which only lm-eval adds up."""
    return {name: float(sample[name]) for name in metrics if isinstance(sample.get(name), (int, float))}


def _json_values(results: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(results, default=str)))
