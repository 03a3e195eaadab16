"""What a suite is to `align evaluate`: settings that check themselves and run; what it found, on disk and shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from align.core.errors import UserError
from align.core.files import write_atomically
from align.core.instantiate import build
from align.core.readable import Readable
from align.generation.stage import Workspace
from align.runs.folder import SUMMARY

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from rich.console import Console
    from transformers import PreTrainedModel

    from align.evaluation.intervals import Interval

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class ScoredPairs:
    """Preference rows as the training forward sees them.

    Attributes:
        metrics: `[N, len(METRICS)]`, NaN where a row has nothing to compare.
        rows: `[N]` with `source` and `longest_sequence`, in the same order.
    """

    metrics: np.ndarray
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """What every suite is given.

    Attributes:
        load: gives the model whose abilities are measured; suites that score given text call it, once.
        workspace: folder, seed, tokenizer, generator and console, as a data pipeline has them.
        score_pairs: measures preference rows with the group `method`; see `ScoredPairs`. Given a path, rows as in
            `data.path`, without synthesised positions; None takes the group `data` (in training: what is held out).
    """

    load: Callable[[], PreTrainedModel]
    workspace: Workspace
    score_pairs: Callable[[str | None], ScoredPairs]


@dataclass(frozen=True)
class Result(Readable):
    """What a suite has found.

    Attributes:
        records: one a sample, plain JSON values: its id, what it was and each of its scores.
        scores: name → mean with interval and number of samples, in the order to show them.
        details: further plain JSON values of the summary: tables by length, settings, failures.
        pictures: file name → figure.
    """

    records: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Interval]
    details: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Figure] = field(default_factory=dict)


class Suite(Protocol):
    """What the group `suite` instantiates: a dataclass whose fields are the group's keys.

    One that measures the rows of the group `data` has a class attribute `reads_rows = True`: that group, `method` and
    `trainer` are then checked before a model is loaded, as they are where it has `pairs`, the path of rows of its own.
    """

    def check(self) -> None:
        """Raises UserError for a value out of range or a missing file; loads no model."""

    def run(self, evaluation: Evaluation) -> Result:
        """Asks and scores; what an earlier start has finished is read from the disk."""


def grouped(
    records: Sequence[Mapping[str, Any]], score: str, by: str, *, seed: int = 0
) -> dict[str, Interval]:
    """The mean of `score` for each value of `by`, in the order in which the values appear."""
    from align.evaluation.intervals import mean_interval

    groups: dict[str, list[float]] = {}
    for record in records:
        groups.setdefault(str(record[by]), []).append(float(record[score]))
    return {name: mean_interval(values, seed=seed) for name, values in groups.items()}


def plain(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    """Intervals as JSON values."""
    return {name: asdict(interval) for name, interval in intervals.items()}


def write_result(result: Result, output: Path) -> None:
    """`samples.jsonl`, `summary.json` and the pictures, each whole or not at all."""
    lines = "".join(f"{json.dumps(dict(record), ensure_ascii=False)}\n" for record in result.records)
    write_atomically(output / SAMPLES, lines)
    for name, figure in result.pictures.items():
        figure.savefig(output / name, dpi=130)
    summary = {"samples": len(result.records), "scores": plain(result.scores), **result.details}
    summary["pictures"] = list(result.pictures)
    write_atomically(output / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def show_result(result: Result, output: Path, console: Console, *, title: str) -> None:
    """The scores as a table, and where everything lies."""
    table = Table(title=title, title_justify="left")
    table.add_column("score")
    for column in ("mean", "95% interval", "samples"):
        table.add_column(column, justify="right")
    for name, interval in result.scores.items():
        table.add_row(
            name, f"{interval.mean:.3f}", f"{interval.low:.3f} … {interval.high:.3f}", str(interval.n)
        )
    console.print(table)
    for label, name in (
        ("samples", SAMPLES),
        ("summary", SUMMARY),
        *(("picture", p) for p in result.pictures),
    ):
        console.print(f"{label:<9} {output / name}", soft_wrap=True, highlight=False)


def at_least(values: Mapping[str, float], least: float) -> None:
    """Refuses values of the group `suite` below `least`, naming the key."""
    for key, value in values.items():
        if value < least:
            raise UserError(f"suite.{key}={value} is too small: give {least:g} or more.")


def build_suites(config: DictConfig) -> dict[str, Suite]:
    """The suites of `suites`, their values' types and ranges checked; loads nothing."""
    return {str(name): build(config, f"suites.{name}", kind="suite") for name in config.get("suites") or {}}
