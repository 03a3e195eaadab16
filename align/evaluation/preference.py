"""Held-out preference pairs: reward accuracy and margin by the length of the row, on the training forward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from align.core.errors import UserError
from align.evaluation.intervals import mean_interval
from align.evaluation.pictures import curve
from align.evaluation.suite import Evaluation, Result, ScoredPairs, grouped, plain
from align.training.metric_names import METRICS


@dataclass(frozen=True)
class Preference:
    """Group `suite`; see hydra_conf/suite/preference.yaml. Its rows come from the group `data`."""

    reads_rows: ClassVar[bool] = True

    edges: list[int] = field(default_factory=lambda: [0, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])

    def check(self) -> None:
        """Raises UserError for edges that do not rise."""
        if list(self.edges) != sorted(set(self.edges)) or not self.edges or self.edges[0] != 0:
            raise UserError(f"suite.edges={list(self.edges)} has to rise from 0.")

    def run(self, evaluation: Evaluation) -> Result:
        """One forward over every row; nothing is generated."""
        pairs = evaluation.score_pairs(None)
        return self.result(pairs, seed=evaluation.workspace.seed)

    def result(self, pairs: ScoredPairs, *, seed: int) -> Result:
        """Means over the rows that compare anything, and by the length of the row."""
        records = []
        for values, row in zip(pairs.metrics, pairs.rows, strict=True):
            named = {name: None if np.isnan(v) else float(v) for name, v in zip(METRICS, values, strict=True)}
            length = int(row["longest_sequence"])
            bucket = [edge for edge in self.edges if edge <= length][-1]
            records.append({"id": row["source"], "length": length, "bucket": bucket, **named})
        compared = [record for record in records if record["rewards/accuracies"] is not None]
        if not compared:
            raise UserError("data.path: no row has a rejected answer, so that there is nothing to prefer.")
        compared.sort(key=lambda record: record["length"])
        names = ("rewards/accuracies", "rewards/margins")
        by_length = {name: grouped(compared, name, "bucket", seed=seed) for name in names}
        return Result(
            records=records,
            scores={name: mean_interval([record[name] for record in compared], seed=seed) for name in names},
            details={"by_length": {name: plain(groups) for name, groups in by_length.items()}},
            pictures={
                "lengths.png": curve(
                    {float(edge): value for edge, value in by_length["rewards/accuracies"].items()},
                    labels=("tokens of prompt and longest answer, from", "reward accuracy"),
                    title=f"{len(compared)} held-out pairs",
                )
            },
        )
