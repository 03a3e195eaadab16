"""The miniature's table in the papers' shape, its claims and its pictures, from the cells there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from align.evaluation.intervals import Interval
from benchmarks.miniature.analysis import (
    Difference,
    ablations,
    compare,
    comparisons,
    mean_of,
    seeds_of,
    verdict,
)
from benchmarks.miniature.methods import ABLATIONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = Mapping[str, Mapping[str, Any]]

TITLES = {
    "qa": "SmolLM2-135M-Instruct, multi-document QA: substring accuracy, %",
    "find": "0.12M parameters, window 64 tokens, a fact among fillers: accuracy, %",
    "write": "0.12M parameters, long writing: S_l",
}
CONDITIONS = {
    "qa": {"alone": "gold passage alone", "trained": "6 passages (trained on)", "beyond": "24 passages"},
    "find": {
        "alone": "8 tokens",
        "trained": "48 (trained on)",
        "beyond_256": "256",
        "beyond_1024": "1,024",
    },
    "write": {"length_score": "S_l", "written_words": "words written"},
}
MAIN = ("base", "sft", "dpo", "simpo", "longpo", "logo", "logo_positions")
METHODS = {
    "qa": (*MAIN, *ABLATIONS["qa"]),
    "find": (*MAIN, *ABLATIONS["find"]),
    "write": ("base", "sft", "dpo", *ABLATIONS["write"]),
}
LABELS = {
    "logo_positions": "logo + positions",
    "sft_positions": "sft + positions",
    "dpo_slow": "dpo, rate / 10",
    "simpo_slow": "simpo, rate / 10",
    "longpo_slow": "longpo, rate / 10",
    "longpo_answer": "longpo, NLL of answer",
    "dpo_half": "dpo, one epoch",
    "dpo_decay": "dpo, falling rate",
}
CLAIMS = {
    "a": "LOGO's synthesised positions raise accuracy beyond the trained lengths",
    "b": "LongPO raises long-context accuracy and keeps the short one",
    "c": "SFT on long answers, then DPO with the length score, raise S_l",
}


def show(results: Results, console: Console) -> None:
    """A table for each part that has cells, the claims with their intervals, and what the cells cost."""
    for part in TITLES:
        console.print(part_table(results, part))
    console.print(claims_table(results))
    console.print(ablations_table(results))
    console.print(cost_table(results))


def part_table(results: Results, part: str) -> Table:
    """One line a method, one column a condition; a dash where no cell is finished."""
    table = Table(title=TITLES[part], title_justify="left")
    table.add_column("method")
    table.add_column("seeds", justify="right")
    for label in CONDITIONS[part].values():
        table.add_column(label, justify="right")
    for method in METHODS[part]:
        if method == next(iter(ABLATIONS[part]), None):
            table.add_section()
        seeds = [seed for seed in seeds_of(results, part, method) if seed is not None]
        has = bool(seeds_of(results, part, method))
        found = [mean_of(results, part, method, condition) for condition in CONDITIONS[part]]
        shown = [
            "–" if interval is None else _value(interval, condition)
            for condition, interval in zip(CONDITIONS[part], found, strict=True)
        ]
        label = "none drawn" if has and not seeds else ", ".join(map(str, sorted(seeds))) or "–"
        table.add_row(LABELS.get(method, method), label, *shown)
    return table


def _value(interval: Interval, condition: str) -> str:
    scale = 100.0 if condition not in CONDITIONS["write"] else 1.0
    low, mean, high = (scale * value for value in (interval.low, interval.mean, interval.high))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def claims_table(results: Results) -> Table:
    """Every comparison of the protocol with its interval and each seed's difference, and the verdicts."""
    table = Table(title="claims: paired differences, 95 % intervals, points", title_justify="left")
    for column in ("claim", "part", "difference", "at"):
        table.add_column(column)
    for column in ("mean", "interval", "by seed"):
        table.add_column(column, justify="right")
    for claim, text in CLAIMS.items():
        table.add_section()
        for part in TITLES:
            own = [c for c in comparisons() if (c.claim, c.part) == (claim, part)]
            if not own:
                continue
            outcomes = [compare(results, comparison) for comparison in own]
            for comparison, outcome in zip(own, outcomes, strict=True):
                table.add_row(claim, part, comparison.name, comparison.at, *_difference(outcome, part))
            table.add_row(claim, part, f"[bold]{verdict(outcomes)}", text, "", "", "")
    return table


def ablations_table(results: Results) -> Table:
    """What the ablations say."""
    table = Table(title="ablations: paired differences, 95 % intervals, points", title_justify="left")
    for column in ("looks at", "part", "difference", "at"):
        table.add_column(column, overflow="fold")
    for column in ("mean", "interval", "by seed"):
        table.add_column(column, justify="right")
    for comparison in ablations():
        outcome = _difference(compare(results, comparison), comparison.part)
        table.add_row(comparison.claim, comparison.part, comparison.name, comparison.at, *outcome)
    return table


def _difference(outcome: Difference | None, part: str) -> tuple[str, str, str]:
    if outcome is None:
        return ("–", "–", "–")
    scale = 1.0 if part == "write" else 100.0
    low, mean, high = (
        scale * value for value in (outcome.interval.low, outcome.interval.mean, outcome.interval.high)
    )
    seeds = ", ".join(f"{scale * value:+.1f}" for _, value in sorted(outcome.by_seed.items()))
    return f"{mean:+.1f}", f"{low:+.1f} … {high:+.1f}", seeds


def cost_table(results: Results) -> Table:
    """What each method's cells cost on average, and what the policy read."""
    table = Table(title="cost of a cell, mean over seeds", title_justify="left")
    table.add_column("cells")
    for column in ("seconds", "CPU s", "tokens trained on", "tokens of the reference", "machine"):
        table.add_column(column, justify="right")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results.values():
        groups.setdefault(f"{result['part']}/{result['method']}", []).append(result)
    for name, cells in groups.items():
        seconds, processor = (
            sum(cost[key] for cell in cells for cost in cell["costs"]) / len(cells)
            for key in ("seconds", "processor_seconds")
        )
        read = [_mean_of([cell.get("training", {}).get(key) for cell in cells]) for key in _TOKENS]
        machines = " / ".join(sorted({cell["machine"] for cell in cells}))
        table.add_row(name, f"{seconds:.0f}", f"{processor:.0f}", *read, machines)
    return table


_TOKENS = ("num_tokens", "reference/tokens")


def _mean_of(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):,.0f}" if known else "–"


# ---- pictures


def draw(results: Results, folder: Path) -> list[Path]:
    """`PART.png` for each part that has cells: a bar a method in each condition, with intervals."""
    paths = []
    for part in TITLES:
        figure = picture(results, part)
        if figure is not None:
            folder.mkdir(parents=True, exist_ok=True)
            paths.append(folder / f"{part}.png")
            figure.savefig(paths[-1], dpi=130)
    return paths


def picture(results: Results, part: str) -> Figure | None:
    """Accuracy (or S_l) by condition and method; None without any cell."""
    from matplotlib.figure import Figure

    shown = [name for name in METHODS[part] if name in MAIN or name.endswith("_positions")]
    methods = [name for name in shown if seeds_of(results, part, name)]
    if not methods:
        return None
    conditions = [name for name in CONDITIONS[part] if name != "written_words"]
    scale = 1.0 if part == "write" else 100.0
    figure = Figure(figsize=(3.0 + 2.4 * len(conditions), 3.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        found = [mean_of(results, part, method, condition) for condition in conditions]
        known = [(place, interval) for place, interval in enumerate(found) if interval is not None]
        places = [place - 0.4 + (number + 0.5) * width for place, _ in known]
        heights = [scale * interval.mean for _, interval in known]
        below = [scale * max(0.0, interval.mean - interval.low) for _, interval in known]
        above = [scale * max(0.0, interval.high - interval.mean) for _, interval in known]
        colour = f"C{METHODS[part].index(method)}"
        axes.bar(
            places, heights, width * 0.92, yerr=[below, above], color=colour, label=LABELS.get(method, method)
        )
    axes.set_xticks(range(len(conditions)), [CONDITIONS[part][name] for name in conditions])
    axes.set_title(TITLES[part], loc="left", fontsize=10)
    axes.set_ylim(0, 100)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return figure
