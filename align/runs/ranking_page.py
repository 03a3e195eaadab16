"""Ranked runs as people look at them: a table, a picture, and a page with both."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from align.core.readable import counted
from align.runs.ranking import RunResult, suite_scores

LABELLED = 3  # settings that stand beside a bar; the table has more
COLUMNS = 6  # settings that the table in a terminal has; the page has them all
WIDTH = 60  # characters of a value or a name that are shown
HEAD = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>align report</title>'  # by it ours is known
)
COSTS = {"train_runtime": "seconds", "tokens_per_second": "tokens/s", "memory/peak_gb": "peak GB"}


def cells(run: RunResult, keys: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """A run's row: settings, metrics, costs; empty where it has none."""
    settings = [_short_text(str(run.settings.get(key, ""))) for key in keys]
    values = [_shown((run.after or {}).get(name), run.intervals.get(name)) for name in metrics]
    costs = [_shown((run.costs or {}).get(name)) for name in COSTS]
    return [*settings, *values, *costs]


def _shown(number: float | None, interval: tuple[float, float] | None = None) -> str:
    """`0.4123 (0.35 … 0.47)`; empty where there is none."""
    bounds = "" if interval is None else f" ({interval[0]:.3g} … {interval[1]:.3g})"
    return "" if number is None else f"{number:.4g}{bounds}"


def _short_text(text: str) -> str:
    """Its beginning and end where it is long: a list of forty files says nothing in a table."""
    half = WIDTH // 2 - 1
    return text if len(text) <= WIDTH else f"{text[:half]} … {text[-half:]}"


def table(ranked: Sequence[RunResult], rest: Sequence[RunResult], keys: Sequence[str], metric: str) -> Table:
    """The ranking, and below it what did not finish; columns that no run has a value for are left out."""
    metrics = [metric, *suite_scores([*ranked, *rest], metric)]
    shown = Table(
        title=escape(f"{counted(len(ranked), 'run')} by {metric}, {len(rest)} without it"),
        title_justify="left",
    )
    columns = ("", "run", *map(_short, keys), *metrics, *COSTS.values())
    rows = [[str(place), run.name, *cells(run, keys, metrics)] for place, run in enumerate(ranked, start=1)]
    below = [["", f"{run.name} {run.state}", *cells(run, keys, metrics)] for run in rest]
    filled = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in (*rows, *below))]
    for i in filled:
        shown.add_column(escape(columns[i]), justify="right", overflow="fold")
    for row in rows:
        shown.add_row(*(escape(row[i]) for i in filled))
    shown.add_section()
    for row in below:
        shown.add_row(*(escape(row[i]) for i in filled))
    return shown


def draw(ranked: Sequence[RunResult], keys: Sequence[str], metric: str) -> bytes:
    """PNG: the metric of each run, best first, and against each setting that is a number."""
    from matplotlib.figure import Figure

    numeric = [key for key in keys if ranked and all(_is_number(run.settings.get(key)) for run in ranked)][:3]
    figure = Figure(figsize=(5 + 4 * len(numeric), 0.6 + 0.34 * max(len(ranked), 8)), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(numeric), squeeze=False)[0]
    values = [(run.after or {})[metric] for run in ranked]
    named = keys[:LABELLED]
    labels = [
        literal(_short_text(run.name) + "  " + " ".join(str(run.settings.get(key, ""))[:24] for key in named))
        for run in ranked
    ]
    first.barh(range(len(ranked)), values, color="#1f5a92")
    first.set_yticks(range(len(ranked)), labels, fontsize=8)
    first.invert_yaxis()
    first.set_title(literal(metric), loc="left", fontsize=11)
    for axes, key in zip(others, numeric, strict=True):
        axes.plot([float(run.settings[key]) for run in ranked], values, "o", color="#c8502d")
        axes.set_xlabel(literal(_short(key)))
        axes.grid(alpha=0.25)
        if min(float(run.settings[key]) for run in ranked) > 0:
            axes.set_xscale("log")
    for axes in (first, *others):
        axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()


def page(
    ranked: Sequence[RunResult], rest: Sequence[RunResult], keys: Sequence[str], metric: str, picture: bytes
) -> str:
    """One HTML file with nothing outside it: the table, the picture, why runs failed."""
    metrics = [metric, *suite_scores([*ranked, *rest], metric)]
    columns = ("", "run", *keys, *metrics, *COSTS.values(), "state")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    rows = []
    for place, run in [*enumerate(ranked, start=1), *((None, run) for run in rest)]:
        state = f"{run.state}: {run.reason}" if run.reason else run.state
        row = ["" if place is None else str(place), run.name, *cells(run, keys, metrics), state]
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    style = "body{font:14px sans-serif;margin:2em} td,th{padding:.3em .8em;text-align:right}"
    image = base64.b64encode(picture).decode()
    return (
        f"{HEAD}<style>{style}</style>"
        f"<h1>{counted(len(ranked), 'run')} by {html.escape(metric)}</h1><table><tr>{head}</tr>{''.join(rows)}</table>"
        f'<p><img alt="{html.escape(metric)} of each run" src="data:image/png;base64,{image}"></p></html>\n'
    )


def literal(text: str) -> str:
    """For matplotlib, which would read what stands between two `$` as a formula; line breaks would tear the layout."""
    return " ".join(text.split()).replace("$", r"\$")


def _short(key: str) -> str:
    """The last part of a dotted key, which is enough in a narrow table."""
    return key.rpartition(".")[2]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
