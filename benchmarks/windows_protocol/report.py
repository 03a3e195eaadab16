"""From cells to tables: accuracy by length, perplexity by position, the questions' answers, and what cells cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from align.evaluation.intervals import Interval, mean_interval, proportion_interval
from benchmarks.windows_protocol.arms import ARMS, SETTINGS
from benchmarks.windows_protocol.data import conditions
from benchmarks.windows_protocol.questions import Answer, Results, answers, shown

TITLES = {
    "find": "0.12M parameters, window of 64 tokens, trained for 512",
    "smollm2": "SmolLM2-135M-Instruct, window of 8,192 tokens, for 12,288",
}
DASH = "–"
Cells = list[tuple[str, list[str]]]  # arm and its columns


def values(results: Results, part: str, name: str, keys: Sequence[str]) -> np.ndarray | None:
    """`[seeds, items]` of some conditions, side by side; None where no cell is finished."""
    cells = [results["/".join((part, name, *seed_of(seed)))] for seed in shown(results, part, name)]
    if not cells:
        return None
    return np.array([np.concatenate([cell["scores"][key] for key in keys]) for cell in cells], dtype=float)


def seed_of(seed: int | None) -> tuple[str, ...]:
    """The end of a cell's name."""
    return () if seed is None else (f"seed{seed}",)


def accuracy(results: Results, part: str, name: str, keys: Sequence[str]) -> Interval | None:
    """The share of the questions, with Wilson's interval; what one question got with several seeds counts once."""
    found = values(results, part, name, keys)
    if found is None:
        return None
    items = np.tile(np.arange(found.shape[1]), found.shape[0])
    return proportion_interval(found.ravel().tolist(), groups=items.tolist())


def perplexity(results: Results, part: str, name: str, edge: int) -> Interval | None:
    """e to the mean NLL from a position on, with the interval over documents, each averaged over the seeds."""
    found = values(results, part, name, (f"nll/{edge}",))
    if found is None:
        return None
    mean = mean_interval(found.mean(0).tolist())
    low, high = (None if end is None else math.exp(end) for end in (mean.low, mean.high))
    return Interval(math.exp(mean.mean), low, high, mean.n, mean.independent, mean.why)


def accuracy_rows(results: Results, part: str) -> tuple[list[str], Cells]:
    """Accuracy in percent by length, all depths together, of each arm."""
    lengths = SETTINGS[part].lengths
    rows = []
    for name in ARMS[part]:
        found = [accuracy(results, part, name, conditions((length,))) for length in lengths]
        rows.append((name, [_percent(interval) for interval in found]))
    return [f"{length:,}" for length in lengths], rows


def perplexity_rows(results: Results, part: str) -> tuple[list[str], Cells]:
    """Perplexity by position of each arm."""
    setting = SETTINGS[part]
    rows = []
    for name in ARMS[part]:
        found = [perplexity(results, part, name, edge) for edge in setting.edges]
        rows.append((name, [_bare(interval) for interval in found]))
    ends = [*setting.edges[1:], setting.lengths[-1]]
    return [f"{low:,} … {high - 1:,}" for low, high in zip(setting.edges, ends, strict=True)], rows


def cost_rows(results: Results, part: str) -> tuple[list[str], Cells]:
    """Processor seconds of training and of reading, and tokens trained on, means over the seeds."""
    rows = []
    for name in ARMS[part]:
        own = [results["/".join((part, name, *seed_of(seed)))] for seed in shown(results, part, name)]
        rows.append((name, [_seconds(own, reading=False), _seconds(own, reading=True), _tokens(own)]))
    return ["training, CPU s", "reading, CPU s", "tokens trained on"], rows


def _seconds(cells: Sequence[Mapping[str, Any]], *, reading: bool) -> str:
    if not cells:
        return DASH
    found = [
        sum(cost["processor_seconds"] for cost in cell["costs"] if (cost["step"] == "evaluate") == reading)
        for cell in cells
    ]
    return f"{sum(found) / len(found):,.0f}"


def _tokens(cells: Sequence[Mapping[str, Any]]) -> str:
    found = [cell["training"]["num_tokens"] for cell in cells if "training" in cell]
    return f"{sum(found) / len(found):,.0f}" if found else DASH


def _percent(interval: Interval | None) -> str:
    return DASH if interval is None else _with_bounds(interval, scale=100.0, digits=1)


def _bare(interval: Interval | None) -> str:
    return DASH if interval is None else _with_bounds(interval, scale=1.0, digits=2)


def _with_bounds(interval: Interval, *, scale: float, digits: int) -> str:
    mean = f"{scale * interval.mean:,.{digits}f}"
    if interval.low is None or interval.high is None:
        return mean
    return f"{mean} [{scale * interval.low:,.{digits}f}, {scale * interval.high:,.{digits}f}]"


def answer_cells(answer: Answer) -> list[str]:
    """The pair, the length, the difference in points with its interval, each seed's own, and the verdict."""
    pair = [f"{answer.first} − {answer.second}", f"{answer.length:,}"]
    found = answer.difference
    if found is None or found.interval.low is None or found.interval.high is None:
        return [*pair, DASH, DASH, DASH, answer.verdict]
    seeds = ", ".join(signed(value) for _, value in sorted(found.by_seed.items()))
    low, mean, high = (
        signed(each) for each in (found.interval.low, found.interval.mean, found.interval.high)
    )
    return [*pair, mean, f"[{low}, {high}]", seeds, answer.verdict]


def signed(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def show(results: Results, console: Console) -> None:
    """Every table of every setting; a dash where a cell is missing."""
    for part, title in TITLES.items():
        for what, made in (
            ("accuracy by length, %", accuracy_rows),
            ("perplexity by position", perplexity_rows),
            ("cost of a cell", cost_rows),
        ):
            headings, rows = made(results, part)
            table = Table(title=f"{title}: {what}", title_justify="left")
            table.add_column("arm")
            for heading in headings:
                table.add_column(heading, justify="right")
            for name, columns in rows:
                table.add_row(name, *columns)
            console.print(table)
        console.print(answers_table(results, part))


def answers_table(results: Results, part: str) -> Table:
    """The questions and their answers."""
    table = Table(title=f"{TITLES[part]}: paired differences, 95 % intervals, points", title_justify="left")
    table.add_column("question")
    for column in ("difference", "tokens", "points", "interval", "by seed", "verdict"):
        table.add_column(column, no_wrap=True)
    key = ""
    for answer in answers(results, part):
        question = answer.question
        if question.key != key:
            table.add_section()
        table.add_row(f"{question.key} {question.text}" if question.key != key else "", *answer_cells(answer))
        key = question.key
    return table
