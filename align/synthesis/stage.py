"""A stage of a pipeline: all its calls, answered once, shown as a bar, resumed where they stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import PreTrainedTokenizerBase

from align.synthesis.generators import Completion, Generator, Request
from align.synthesis.ledger import Ledger

WORK = "work"  # folder of unfinished and finished calls below the output folder


@dataclass(frozen=True)
class Workspace:
    """What every pipeline is given.

    Attributes:
        output: the run's folder.
        seed: the run's seed.
        tokenizer: of the model, for token budgets.
        generator: answers requests.
        console: for people; everything shown goes to stderr.
    """

    output: Path
    seed: int
    tokenizer: PreTrainedTokenizerBase
    generator: Generator
    console: Console


def run_stage(name: str, requests: Sequence[Request], workspace: Workspace) -> list[Completion]:
    """The completions of all requests, in their order; those of an earlier start are read from the disk."""
    ledger = Ledger(workspace.output / WORK / f"{name}.jsonl")
    pending = sum(request.digest not in ledger.finished for request in requests)
    if pending:
        with progress_bar(workspace.console) as progress:
            task = progress.add_task(name, total=len(requests), completed=len(requests) - pending)
            for group in workspace.generator.generate(requests, finished=ledger.finished.keys()):
                new = sum(request.digest not in ledger.finished for request, _ in group)
                ledger.append(group)
                progress.advance(task, new)
    return [ledger.finished[request.digest] for request in requests]


def progress_bar(console: Console) -> Progress:
    """The bar that every stage shows."""
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
