"""What a suite is to `align evaluate`: settings that check themselves and run; what it found, on disk and shown."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from align.core.errors import UserError
from align.core.files import numbers_only, write_atomically, write_bytes_atomically
from align.core.instantiate import build
from align.core.readable import Readable
from align.generation.stage import Workspace
from align.runs.folder import SUMMARY

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel

    from align.evaluation.intervals import Interval, Measure, Score

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
        weights: what tells the weights of `load` from any other, see `align.models.identity`; answers of others are not
            taken for theirs.
        window: tokens that the model was made to read; None where nobody knows, or it is stretched on purpose.
    """

    load: Callable[[], PreTrainedModel]
    workspace: Workspace
    score_pairs: Callable[[str | None], ScoredPairs]
    weights: Callable[[], str]
    window: Callable[[], int | None] = lambda: None


@dataclass(frozen=True)
class Result(Readable):
    """What a suite has found.

    Attributes:
        records: one a sample, plain JSON values: its id, what it was and each of its scores.
        scores: name → mean with interval and number of samples, in the order to show them; a `Score` also tells which
            values are the better ones.
        details: further plain JSON values of the summary: tables by length, settings, failures.
        pictures: file name → figure.
        notes: sentences that the scores are not to be read without.
    """

    records: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Interval]
    details: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Figure] = field(default_factory=dict)
    notes: Sequence[str] = ()


class Suite(Protocol):
    """What the group `suite` instantiates: a dataclass whose fields are the group's keys.

    One that scores answers made elsewhere has an attribute `asks = False`: no model had a part in them. One that
    measures the rows of the group `data` has a class attribute `reads_rows = True`: that group, `method` and
    `trainer` are then checked before a model is loaded, as they are where it has `pairs`, the path of rows of its own.
    """

    def check(self) -> None:
        """Raises UserError for a value out of range or a missing file; loads no model."""

    def run(self, evaluation: Evaluation) -> Result:
        """Asks and scores; what an earlier start has finished is read from the disk."""


def grouped(
    records: Sequence[Mapping[str, Any]],
    score: str,
    by: str,
    measure: Measure,
    *,
    independent: str | None = None,
) -> dict[str, Score]:
    """`score` for each value of `by`, in the order in which the values appear.

    Args:
        records: one a sample.
        score: its name in them.
        by: what they are grouped by.
        measure: what the score is.
        independent: what samples that are not independent have in common; None: every sample is.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(str(record[by]), []).append(record)
    return {name: score_of(own, score, measure, independent=independent) for name, own in groups.items()}


def score_of(
    records: Sequence[Mapping[str, Any]], score: str, measure: Measure, *, independent: str | None = None
) -> Score:
    """The mean of `score` over the records; arguments as in `grouped`."""
    units = None if independent is None else [str(record[independent]) for record in records]
    return measure.of([float(record[score]) for record in records], units)


def plain(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    """Intervals as JSON values."""
    return {name: asdict(interval) for name, interval in intervals.items()}


def write_result(result: Result, output: Path) -> None:
    """`samples.jsonl`, `summary.json` and the pictures, each whole or not at all; NaN and infinity become null."""
    records, lost = numbers_only([dict(record) for record in result.records])
    lines = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
    write_atomically(output / SAMPLES, lines)
    for name, figure in result.pictures.items():
        stream = io.BytesIO()
        figure.savefig(stream, format=Path(name).suffix.removeprefix("."), dpi=130)
        write_bytes_atomically(output / name, stream.getvalue())
    summary = {"samples": len(result.records), "scores": plain(result.scores), **result.details}
    summary["pictures"] = list(result.pictures)
    if result.notes:
        summary["notes"] = list(result.notes)
    summary, _ = numbers_only(summary)
    if lost:
        summary["not_numbers"] = lost
    write_atomically(output / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def show_result(result: Result, output: Path, console: Console, *, title: str) -> None:
    """The scores as a table, what has to be known about them, and where everything lies."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("score")
    for column in ("mean", "95% interval", "samples"):
        table.add_column(column, justify="right")
    for name, interval in result.scores.items():
        table.add_row(escape(name), f"{interval.mean:.3f}", _bounds(interval), _samples(interval))
    console.print(table)
    _, lost = numbers_only([dict(record) for record in result.records])
    missing = [f"{lost} values are no numbers (NaN or infinite): null in {SAMPLES}."] if lost else []
    for note in (*result.notes, *missing):
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    for label, name in (
        ("samples", SAMPLES),
        ("summary", SUMMARY),
        *(("picture", p) for p in result.pictures),
    ):
        console.print(f"{label:<9} {output / name}", soft_wrap=True, highlight=False, markup=False)


def _bounds(interval: Interval) -> str:
    if interval.low is None:
        return f"none: {interval.why}"
    return f"{interval.low:.3f} … {interval.high:.3f}"


def _samples(interval: Interval) -> str:
    """`50`, or `50 (2 independent)` where samples belong together."""
    few = 0 < interval.independent < interval.n
    return f"{interval.n} ({interval.independent} independent)" if few else str(interval.n)


def at_least(values: Mapping[str, float | None], least: float) -> None:
    """Refuses values of the group `suite` below `least`, naming the key; null, where a key takes it, is none."""
    for key, value in values.items():
        if value is not None and not value >= least:
            raise UserError(f"suite.{key}={value} is too small: give {least:g} or more.")


def check_edges(edges: Sequence[int]) -> None:
    """Refuses `suite.edges` that do not rise from 0."""
    if list(edges) != sorted(set(edges)) or not edges or edges[0] != 0:
        raise UserError(f"suite.edges={list(edges)} has to rise from 0.")


def build_suites(config: DictConfig) -> dict[str, Suite]:
    """The suites of `suites`, their values' types and ranges checked; loads nothing."""
    return {str(name): build(config, f"suites.{name}", kind="suite") for name in config.get("suites") or {}}
