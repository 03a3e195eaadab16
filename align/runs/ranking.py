"""The runs below a folder: what each was set to and found, and which is the best."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from align.core.errors import UserError
from align.runs.folder import CONFIG_NAME, SUMMARY, leaves
from align.runs.jobs import FAILURE

ORDERS = ("auto", "ascending", "descending")


# Keys that tell runs apart without being a setting of the training.
_NOT_SETTINGS = ("output", "resume", "objective", "launch", "suites")


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
