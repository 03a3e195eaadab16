"""`align report`: the runs of a sweep, or of any folder, ranked in a table and drawn: settings, metric, cost."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.table import Table

from align.core.config import check_choice, typed
from align.core.errors import UserError
from align.core.files import write_atomically
from align.evaluation.suite import SUMMARY
from align.runs.api import make_callable
from align.runs.command import hydra_entry
from align.runs.folder import CONFIG_NAME, leaves
from align.runs.jobs import FAILURE

if TYPE_CHECKING:
    from omegaconf import DictConfig

ORDERS = ("auto", "ascending", "descending")
COSTS = {"train_runtime": "seconds", "tokens_per_second": "tokens/s", "memory/peak_gb": "peak GB"}
# Keys that tell runs apart without being a setting of the training.
_NOT_SETTINGS = ("output", "resume", "objective", "launch", "suites")


@dataclass(frozen=True)
class ReportSettings:
    """Top-level keys; see hydra_conf/report.yaml."""

    path: str
    metric: str | None = None
    order: str = "auto"


@dataclass(frozen=True)
class RunResult:
    """What a run folder holds.

    Attributes:
        name: the folder below the one that is reported on.
        settings: every dotted key of its configuration.
        state: `finished`, `failed` or `unfinished`.
        reason: why it failed.
        after: held-out metrics after training, or what `align evaluate` found, as `SUITE/SCORE`.
        costs: what training took.
        intervals: of the metrics of a suite, their 95% intervals.
    """

    name: str
    settings: Mapping[str, Any]
    state: str
    reason: str = ""
    after: Mapping[str, float] | None = None
    costs: Mapping[str, float] | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
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


def read_runs(folder: Path) -> list[RunResult]:
    """Every run at or below `folder`, by name; numbers in their order.

    Raises:
        UserError: no folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"path={folder} is no folder: name the output of a sweep.")
    places = {path.parent for name in (CONFIG_NAME, FAILURE) for path in folder.rglob(name)}
    runs = [_read_run(place, str(place.relative_to(folder))) for place in places]
    if not runs:
        raise UserError(f"path={folder} holds no run of `align train`: no {CONFIG_NAME} lies in it.")
    return sorted(
        runs, key=lambda run: (not run.name.isdigit(), int(run.name) if run.name.isdigit() else 0, run.name)
    )


def _read_run(place: Path, name: str) -> RunResult:
    try:
        text = (place / CONFIG_NAME).read_text() if (place / CONFIG_NAME).is_file() else "{}"
        settings = dict(leaves(yaml.safe_load(text)))
        if (place / FAILURE).is_file():
            return RunResult(name, settings, "failed", (place / FAILURE).read_text().strip())
        if "suite._target_" in settings:
            return _read_evaluation(place, name, settings)
        if not (place / "results.json").is_file():
            return RunResult(name, settings, "unfinished")
        results = json.loads((place / "results.json").read_text())
        return RunResult(name, settings, "finished", after=results["after"], costs=results["training"])
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{place} cannot be read ({' '.join(str(error).split())}): move it away.") from error


def _read_evaluation(place: Path, name: str, settings: Mapping[str, Any]) -> RunResult:
    """A folder of `align evaluate`."""
    if not (place / SUMMARY).is_file():
        return RunResult(name, settings, "unfinished")
    suite = str(settings["suite._target_"]).rpartition(".")[2].lower()
    scores = json.loads((place / SUMMARY).read_text())["scores"]
    means = {f"{suite}/{score}": interval["mean"] for score, interval in scores.items()}
    intervals = {f"{suite}/{score}": (found["low"], found["high"]) for score, found in scores.items()}
    return RunResult(name, settings, "finished", after=means, intervals=intervals)


def common_objective(runs: Sequence[RunResult]) -> str:
    """The metric that all runs were meant to be judged by; of evaluations alone the first one's first score.

    Raises:
        UserError: they differ.
    """
    found = sorted({str(run.settings["objective"]) for run in runs if "objective" in run.settings})
    if len(found) > 1:
        raise UserError(f"the runs have different objectives ({', '.join(found)}): choose one, metric=NAME.")
    if found:
        return found[0]
    return next((name for run in runs for name in run.after or {}), "eval_rewards/accuracies")


def rank(runs: Sequence[RunResult], metric: str, *, order: str = "auto") -> list[RunResult]:
    """The finished runs that have the metric, the best first; equal ones in their own order.

    Args:
        runs: all runs.
        metric: by which they are ranked.
        order: `ascending` takes the lowest value as the best, `descending` the highest; `auto` the lowest of losses
            and perplexities (0.4 before 0.7) and the highest of anything else.

    Raises:
        UserError: no finished run has the metric.
    """
    values = {run.name: run.after[metric] for run in runs if run.after and metric in run.after}
    known = sorted({name for run in runs for name in run.after or {}})
    if known and not values:
        raise UserError(f"metric={metric} is in no run's results: use {', '.join(known)}.")
    lowest_first = order == "ascending" or (order == "auto" and _less_is_better(metric))
    ranked = [run for run in runs if run.name in values]
    return sorted(ranked, key=lambda run: values[run.name] if lowest_first else -values[run.name])


def _less_is_better(metric: str) -> bool:
    return "loss" in metric or "perplexity" in metric


def differing(runs: Sequence[RunResult]) -> list[str]:
    """The settings in which the runs are not all alike, in the order of the configuration."""
    configured = [run.settings for run in runs if run.settings]
    keys = dict.fromkeys(key for settings in configured for key in settings)
    return [
        key
        for key in keys
        if key.partition(".")[0] not in _NOT_SETTINGS
        and len({json.dumps(settings.get(key), default=str) for settings in configured}) > 1
    ]


def suite_scores(runs: Sequence[RunResult], metric: str) -> list[str]:
    """Metrics of suites asked in training (`eval_NAME/SCORE`), but for `metric` itself, which has its own column."""
    found = dict.fromkeys(
        name
        for run in runs
        for suite in suites_of(run.settings)
        for name in run.after or {}
        if name.startswith(f"eval_{suite}/") and name != metric
    )
    return list(found)


def suites_of(settings: Mapping[str, Any]) -> list[str]:
    """The names in `suites` of a run's configuration, whose dotted keys these are."""
    parts = (key.split(".") for key in settings)
    return list(dict.fromkeys(part[1] for part in parts if part[0] == "suites" and len(part) > 2))


def cells(run: RunResult, keys: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """A run's row: settings, metrics, costs; empty where it has none."""
    settings = [str(run.settings.get(key, "")) for key in keys]
    values = [_shown((run.after or {}).get(name), run.intervals.get(name)) for name in metrics]
    costs = [_shown((run.costs or {}).get(name)) for name in COSTS]
    return [*settings, *values, *costs]


def _shown(number: float | None, interval: tuple[float, float] | None = None) -> str:
    """`0.4123 (0.35 … 0.47)`; empty where there is none."""
    bounds = "" if interval is None else f" ({interval[0]:.3g} … {interval[1]:.3g})"
    return "" if number is None else f"{number:.4g}{bounds}"


def table(ranked: Sequence[RunResult], rest: Sequence[RunResult], keys: Sequence[str], metric: str) -> Table:
    """The ranking, and below it what did not finish."""
    metrics = [metric, *suite_scores([*ranked, *rest], metric)]
    shown = Table(title=f"{len(ranked)} runs by {metric}, {len(rest)} without it", title_justify="left")
    for column in ("", "run", *map(_short, keys), *metrics, *COSTS.values()):
        shown.add_column(column, justify="right", overflow="fold")
    for place, run in enumerate(ranked, start=1):
        shown.add_row(str(place), run.name, *cells(run, keys, metrics))
    shown.add_section()
    for run in rest:
        shown.add_row("", f"{run.name} {run.state}", *cells(run, keys, metrics))
    return shown


def draw(ranked: Sequence[RunResult], keys: Sequence[str], metric: str) -> bytes:
    """PNG: the metric of each run, best first, and against each setting that is a number."""
    from matplotlib.figure import Figure

    numeric = [key for key in keys if ranked and all(_is_number(run.settings.get(key)) for run in ranked)][:3]
    figure = Figure(figsize=(5 + 4 * len(numeric), 0.6 + 0.34 * max(len(ranked), 8)), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(numeric), squeeze=False)[0]
    values = [(run.after or {})[metric] for run in ranked]
    labels = [f"{run.name}  " + " ".join(str(run.settings.get(key, "")) for key in keys) for run in ranked]
    first.barh(range(len(ranked)), values, color="#1f5a92")
    first.set_yticks(range(len(ranked)), labels, fontsize=8)
    first.invert_yaxis()
    first.set_title(metric, loc="left", fontsize=11)
    for axes, key in zip(others, numeric, strict=True):
        axes.plot([float(run.settings[key]) for run in ranked], values, "o", color="#c8502d")
        axes.set_xlabel(_short(key))
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
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>align report</title><style>{style}</style>'
        f"<h1>{len(ranked)} runs by {html.escape(metric)}</h1><table><tr>{head}</tr>{''.join(rows)}</table>"
        f'<p><img alt="{html.escape(metric)} of each run" src="data:image/png;base64,{image}"></p></html>\n'
    )


def _short(key: str) -> str:
    """The last part of a dotted key, which is enough in a narrow table."""
    return key.rpartition(".")[2]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


make_callable(__name__)

if __name__ == "__main__":
    main()
