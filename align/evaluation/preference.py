"""Held-out preference pairs: reward accuracy and margin by the length of the row, on the training forward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from align.core.errors import UserError
from align.core.readable import counted
from align.evaluation.intervals import Measure, mean_interval, proportion_interval
from align.evaluation.pictures import curve
from align.evaluation.suite import Evaluation, Result, ScoredPairs, check_edges, grouped, plain, score_of
from align.training.metric_names import METRICS

# What is measured of rows that compare anything. An accuracy is a share of the row's rejected answers.
COMPARED = {
    "rewards/accuracies": Measure(proportion_interval, "higher"),
    "rewards/margins": Measure(mean_interval, "higher"),
}


def single_note(key: str, compared: int, rows: int) -> list[str]:
    """A sentence where rows of `key` have nothing to compare."""
    if compared == rows:
        return []
    return [
        f"{rows - compared} of {counted(rows, 'row')} of {key} have no rejected answer and are in no score."
    ]


@dataclass(frozen=True)
class Preference:
    """Group `suite`; see hydra_conf/suite/preference.yaml. Its rows come from the group `data`."""

    reads_rows: ClassVar[bool] = True

    edges: list[int] = field(default_factory=lambda: [0, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])

    def check(self) -> None:
        """Raises UserError for edges that do not rise."""
        check_edges(self.edges)

    def run(self, evaluation: Evaluation) -> Result:
        """One forward over every row; nothing is generated."""
        pairs = evaluation.score_pairs(None)
        return self.result(pairs)

    def result(self, pairs: ScoredPairs) -> Result:
        """Means over the rows that compare anything, and by the length of the row."""
        records = []
        for values, row in zip(pairs.metrics, pairs.rows, strict=True):
            # Without a rejected answer the comparing metrics have no value; of others NaN is what the model gave.
            single = bool(np.isnan(values[METRICS.index("rewards/accuracies")]))
            named = {
                name: None if single and np.isnan(value) else float(value)
                for name, value in zip(METRICS, values, strict=True)
            }
            length = int(row["longest_sequence"])
            bucket = [edge for edge in self.edges if edge <= length][-1]
            records.append({"id": row["source"], "length": length, "bucket": bucket, **named})
        compared = [record for record in records if record["rewards/accuracies"] is not None]
        if not compared:
            raise UserError("data.path: no row has a rejected answer, so that there is nothing to prefer.")
        compared.sort(key=lambda record: record["length"])
        by_length = {name: grouped(compared, name, "bucket", measure) for name, measure in COMPARED.items()}
        return Result(
            records=records,
            scores={name: score_of(compared, name, measure) for name, measure in COMPARED.items()},
            notes=single_note("data.path", len(compared), len(records)),
            details={"by_length": {name: plain(groups) for name, groups in by_length.items()}},
            pictures={
                "lengths.png": curve(
                    {float(edge): value for edge, value in by_length["rewards/accuracies"].items()},
                    labels=("tokens of prompt and longest answer, from", "reward accuracy"),
                    title=f"{len(compared)} held-out pairs",
                )
            },
        )
