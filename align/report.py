"""`align report`: the runs of a sweep, or of any folder, ranked in a table and drawn: settings, metric, cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from align.core.config import check_choice, typed
from align.core.files import write_atomically
from align.core.readable import Readable
from align.runs.api import make_callable
from align.runs.command import hydra_entry
from align.runs.ranking import ORDERS, RunResult, common_objective, differing, rank, read_runs
from align.runs.ranking_page import draw, page, table

if TYPE_CHECKING:
    from omegaconf import DictConfig


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
    metric = settings.metric or common_objective(runs)
    ranked = rank(runs, metric, order=settings.order)
    keys = differing(runs)
    rest = [run for run in runs if run not in ranked]
    console = Console()
    console.print(table(ranked, rest, keys, metric))
    for run in rest:
        console.print(
            f"{run.name}: {run.state}{': ' + run.reason if run.reason else ''}", soft_wrap=True, markup=False
        )
    made = Report(metric, ranked, rest, page=folder / "report.html", picture=folder / "report.png")
    drawn = draw(ranked, keys, metric)
    made.picture.write_bytes(drawn)
    write_atomically(made.page, page(ranked, rest, keys, metric, drawn))
    for label, path in (("page", made.page), ("picture", made.picture)):
        console.print(f"{label:<9} {path}", soft_wrap=True, highlight=False)
    return made


make_callable(__name__)

if __name__ == "__main__":
    main()
