"""`align report`: the runs of a sweep, or of any folder, ranked in a table and drawn: settings, metric, cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from align.core.config import check_choice, typed
from align.core.files import write_atomically, write_bytes_atomically
from align.core.readable import Readable, counted
from align.runs.api import make_callable
from align.runs.command import hydra_entry
from align.runs.outputs import begins_with, check_own
from align.runs.ranking import ORDERS, RunResult, common_objective, differing, rank, read_runs
from align.runs.ranking_page import COLUMNS, HEAD, draw, page, table

if TYPE_CHECKING:
    from omegaconf import DictConfig

PAGE, PICTURE = "report.html", "report.png"  # in the folder that is reported on


@dataclass(frozen=True)
class ReportSettings:
    """Top-level keys; see hydra_conf/report.yaml."""

    path: str
    metric: str | None = None
    order: str = "auto"


@dataclass(frozen=True)
class Report(Readable):
    """What `align report` found.

    Attributes:
        metric: what the runs are ranked by.
        ranked: the finished runs, the best first.
        rest: those that failed, have not finished or lack the metric.
        page, picture: the files that were written.
    """

    metric: str
    ranked: list[RunResult]
    rest: list[RunResult]
    page: Path
    picture: Path


@hydra_entry("report")
def main(config: DictConfig) -> None:
    """The command."""
    report(config)


def report(config: DictConfig) -> Report:
    """Reads the runs, ranks them, prints the table and writes HTML and PNG."""
    settings = typed(ReportSettings, config, "")
    check_choice("order", settings.order, ORDERS)
    folder = Path(settings.path)
    runs = read_runs(folder)
    made_before(folder)
    metric = settings.metric or common_objective(runs)
    ranked = rank(runs, metric, order=settings.order)
    rest = [run for run in runs if run not in ranked]
    kinds = {run.kind for run in ranked} or {run.kind for run in runs}
    compared = [run for run in runs if run.kind in kinds]
    beside = [run for run in compared if run not in ranked]
    keys = differing(compared)
    console = Console()
    console.print(table(ranked, beside, keys[:COLUMNS], metric))
    for line in notes(runs, beside, kinds, keys, metric):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    made = Report(metric, ranked, rest, page=folder / PAGE, picture=folder / PICTURE)
    drawn = draw(ranked, keys, metric)
    write_atomically(
        made.page, page(ranked, beside, keys, metric, drawn)
    )  # first: it tells whose the picture is
    write_bytes_atomically(made.picture, drawn)
    for label, path in (("page", made.page), ("picture", made.picture)):
        console.print(f"{label:<9} {path}", soft_wrap=True, highlight=False, markup=False)
    return made


def made_before(folder: Path) -> None:
    """Refuses to write over a page or a picture that no earlier report has left in the folder.

    Raises:
        UserError: names the file.
    """
    ours = (folder / PAGE).is_file() and begins_with(folder / PAGE, HEAD)
    for name in (PAGE, PICTURE):
        check_own("path", folder / name, own=lambda _: ours)


def notes(
    runs: Sequence[RunResult],
    beside: Sequence[RunResult],
    kinds: Set[str],
    keys: Sequence[str],
    metric: str,
) -> Iterator[str]:
    """A line for each run without the metric, for settings that the table has no column for, for runs of other kinds.

    Args:
        runs: all.
        beside: those of the ranked ones' kind without the metric.
        kinds: of the ranked ones.
        keys: settings in which runs of these kinds differ.
        metric: what they are ranked by.
    """
    for run in beside:
        state = f"has no {metric}" if run.state == "finished" else run.state
        yield f"{run.name}: {state}{': ' + run.reason if run.reason else ''}"
    if len(keys) > COLUMNS:
        yield f"{len(keys) - COLUMNS} more settings differ: the page has them all."
    others = sorted({run.kind for run in runs} - kinds)
    for kind in others:
        own = [run for run in runs if run.kind == kind]
        metrics = list(dict.fromkeys(name for run in own for name in run.after or {}))
        rank_them = f": metric={metrics[0]} ranks them" if metrics else ""
        yield f"{counted(len(own), 'run')} of the kind {kind} beside these{rank_them}"


make_callable(__name__)

if __name__ == "__main__":
    main()
