"""The tables of the longer-window protocol, from the cells there are; see tables.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from benchmarks.miniature.analysis import read_results
from benchmarks.windows_protocol.report import (
    DASH,
    accuracy_rows,
    answer_cells,
    answers,
    cost_rows,
    perplexity_rows,
)
from docs.tables import RESULTS, table

NOT_RUN = "Not run yet.\n"


@cache
def results() -> Mapping[str, Mapping[str, Any]]:
    """Every finished cell."""
    found: Mapping[str, Mapping[str, Any]] = read_results(RESULTS / "windows_protocol")
    return found


def arms(part: str, cells: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Accuracy by length, perplexity by position and cost of each arm that has a cell."""
    cells = results() if cells is None else cells
    made = [make(cells, part) for make in (accuracy_rows, perplexity_rows)]
    headings, costs = cost_rows(cells, part)
    run = [name for name, columns in made[0][1] if set(columns) != {DASH}]
    if not run:
        return NOT_RUN
    tables = []
    for (heads, rows), what in zip(
        made, ("accuracy, %, at tokens", "perplexity, from … to position"), strict=True
    ):
        tables.append(
            table([what, *heads], [[f"`{name}`", *columns] for name, columns in rows if name in run])
        )
    tables.append(
        table(["cost", *headings], [[f"`{name}`", *columns] for name, columns in costs if name in run])
    )
    return "\n".join(tables)


def questions(part: str, cells: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Every pair of every question whose cells are there, in the protocol's order."""
    rows, last = [], ""
    for answer in answers(results() if cells is None else cells, part):
        if answer.difference is None:
            continue
        key = answer.question.key
        rows.append([f"**{key}** {answer.question.text}" if key != last else "", *answer_cells(answer)])
        last = key
    if not rows:
        return NOT_RUN
    return table(["question", "difference", "tokens", "points", "95 % interval", "by seed", "verdict"], rows)


PAGE = "docs/replication.md"
TABLES: dict[tuple[str, str], Callable[[], str]] = {
    (PAGE, "windows find arms"): partial(arms, "find"),
    (PAGE, "windows find questions"): partial(questions, "find"),
    (PAGE, "windows smollm2 arms"): partial(arms, "smollm2"),
    (PAGE, "windows smollm2 questions"): partial(questions, "smollm2"),
}
