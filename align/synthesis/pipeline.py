"""What a pipeline is to `align synthesize`: settings that check themselves, read, and run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.table import Table

from align.core.errors import UserError
from align.core.files import write_atomically, writing_atomically
from align.core.readable import Readable

if TYPE_CHECKING:
    from rich.console import Console

    from align.documents.loading import Document
    from align.generation.stage import Workspace

ROWS = "train.jsonl"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Summary(Readable):
    """What a pipeline has made.

    Attributes:
        path: the rows.
        rows: how many.
        counts: what went in, by name.
        dropped: what the filters took out, by reason.
        method: `method=` that the rows are made for; None is the default one.
        pairs: whether they compare answers, which `align inspect` asks of rows unless it is told otherwise.
    """

    path: Path
    rows: int
    counts: Mapping[str, int]
    dropped: Mapping[str, int] = field(default_factory=dict)
    method: str | None = None
    pairs: bool = True


class Pipeline(Protocol):
    """What the group `pipeline` instantiates: a dataclass whose fields are the group's keys.

    A class variable `reads_documents = True` says that `read` gives documents, of which copies are left out as the
    key `deduplicate` says. Instructions and rows are each wanted for themselves, however much alike they are.
    `uses_generator = False` says that `run` asks nobody: the group `generator` is not opened then, and the folder of
    `model.path` needs no weights.
    """

    def check(self) -> None:
        """Raises UserError for a value out of range; reads and loads nothing."""

    def read(self) -> list[Document]:
        """The documents, or instructions, that the run starts from."""

    def run(self, documents: Sequence[Document], workspace: Workspace) -> Summary:
        """Makes the rows; continues what is in `workspace.output`."""


def reads_documents(pipeline: Pipeline) -> bool:
    """Whether copies among what the pipeline reads may be left out; not where it does not say so."""
    return bool(getattr(pipeline, "reads_documents", False))


def uses_generator(pipeline: Pipeline) -> bool:
    """Whether a pipeline asks a model, as one does that says nothing of it."""
    return bool(getattr(pipeline, "uses_generator", True))


def write_rows(output: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """`train.jsonl`, whole or not at all; rows are written as they come, so that one at a time is held."""
    path = output / ROWS
    with writing_atomically(path) as file:
        for row in rows:
            file.write(f"{json.dumps(row, ensure_ascii=False)}\n")
    return path


def at_least(key: str, value: float, least: float) -> None:
    """Refuses a value of `pipeline.<key>` below `least`."""
    if not value >= least:  # as NaN is not either
        raise UserError(f"pipeline.{key}={value} is too small: give {least} or more.")


def check_share(key: str, value: float) -> None:
    """Refuses a value of `pipeline.<key>` outside (0, 1]."""
    if not 0 < value <= 1:
        raise UserError(f"pipeline.{key}={value} must lie in (0, 1].")


def report(summary: Summary, console: Console, *, seconds: float) -> None:
    """Writes `summary.json` and shows the table and the next command."""
    values = {
        "path": summary.path.name,
        "rows": summary.rows,
        "counts": dict(summary.counts),
        "dropped": dict(summary.dropped),
        "method": summary.method,
    }
    write_atomically(summary.path.with_name(SUMMARY), json.dumps(values, indent=2) + "\n")
    table = Table(title="preference data" if summary.pairs else "rows", show_header=False)
    table.add_column("what")
    table.add_column("number", justify="right")
    for name, number in summary.counts.items():
        table.add_row(name, f"{number:,}")
    for name, number in summary.dropped.items():
        if number:
            table.add_row(f"dropped: {name}", f"{number:,}", style="yellow")
    table.add_row("rows written", f"{summary.rows:,}", style="bold")
    table.add_row("seconds, this start", f"{seconds:.0f}")
    console.print(table)
    method = f"method={summary.method} " if summary.method else ""
    lines = [f"rows      {summary.path}"]
    if summary.rows:
        inspect = "" if summary.pairs else "require_rejected=false "
        lines.append(f"look      align inspect {inspect}data.path={summary.path}")
        lines.append(f"train     align train {method}data.path={summary.path}")
    else:
        lines.append("no row is left: try a larger model, or more questions.")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
