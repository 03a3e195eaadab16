"""The runs below a folder: what each was set to and found, and which is the best."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from align.core.errors import UserError
from align.runs.folder import CONFIG_NAME, SUMMARY, leaves
from align.runs.jobs import FAILURE
from align.runs.objective import ACCURACY, resolved

ORDERS = ("auto", "ascending", "descending")


# Keys that tell runs apart without being a setting of the training.
_NOT_SETTINGS = ("output", "resume", "objective", "launch", "suites")
ADAPTER = "adapter"
TRAINING = "training"  # the kind of a run of `align train`
# Last words of metrics of which lower values are better, where the one who made them does not say.
_LESS = ("loss", "perplexity", "nll", "nll_sliding", "repetition", "runtime")


@dataclass(frozen=True)
class RunResult:
    """What a run folder holds.

    Attributes:
        name: the folder below the one that is reported on.
        settings: every dotted key of its configuration.
        state: `finished`, `failed` or `unfinished`.
        reason: why it failed.
        after: held-out metrics after training, or what `align evaluate` found, as `SUITE/SCORE`; NaN where one is no
            number.
        costs: what training took.
        intervals: of the metrics of a suite, their 95% intervals.
        better: of the metrics of a suite, which values are better: `higher`, `lower`, or None where neither is.
    """

    name: str
    settings: Mapping[str, Any]
    state: str
    reason: str = ""
    after: Mapping[str, float] | None = None
    costs: Mapping[str, float] | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    better: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`training`, or the suite of an evaluation: runs of one kind have settings and metrics to compare."""
        return _suite(self.settings) or TRAINING


def read_runs(folder: Path) -> list[RunResult]:
    """Every run of `align train` and `align evaluate` at or below `folder`, by name; numbers in their order.

    Raises:
        UserError: no folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"path={folder} is no folder: name the output of a sweep.")
    places = {path.parent for name in (CONFIG_NAME, FAILURE) for path in folder.rglob(name)}
    shown = [place for place in places if not _is_hidden(place.relative_to(folder))]
    found = [_read_run(place, str(place.relative_to(folder))) for place in shown]
    runs = [run for run in found if run is not None]
    if not runs:
        raise UserError(
            f"path={folder} holds no run of `align train` or `align evaluate`: no {CONFIG_NAME} of theirs lies in it."
        )
    return sorted(
        runs, key=lambda run: (not run.name.isdigit(), int(run.name) if run.name.isdigit() else 0, run.name)
    )


def _is_hidden(place: Path) -> bool:
    """Whether a folder is a tool's own: Hydra keeps configurations in `.hydra`."""
    return any(part.startswith(".") for part in place.parts)


def _read_run(place: Path, name: str) -> RunResult | None:
    """The run in a folder; None for what other commands have made."""
    try:
        text = (place / CONFIG_NAME).read_text(encoding="utf-8") if (place / CONFIG_NAME).is_file() else "{}"
        settings = dict(leaves(yaml.safe_load(text)))
        if (place / FAILURE).is_file():
            reason = (place / FAILURE).read_text(encoding="utf-8").strip()
            return RunResult(name, settings, "failed", reason)
        if _suite(settings) is not None:
            return _read_evaluation(place, name, settings)
        settings = {ADAPTER: adapter_of(settings), **{k: v for k, v in settings.items() if k != ADAPTER}}
        if "method.name" not in settings and not (place / "results.json").is_file():
            return None
        if not (place / "results.json").is_file():
            return RunResult(name, settings, "unfinished")
        results = json.loads((place / "results.json").read_text(encoding="utf-8"))
        return RunResult(
            name,
            settings,
            "finished",
            after={metric: _number(value) for metric, value in results["after"].items()},
            costs=results["training"],
            better=_better_in_training(place, settings),
        )
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{place} cannot be read ({' '.join(str(error).split())}): move it away.") from error


def _read_evaluation(place: Path, name: str, settings: Mapping[str, Any]) -> RunResult:
    """A folder of `align evaluate`."""
    if not (place / SUMMARY).is_file():
        return RunResult(name, settings, "unfinished")
    suite = _suite(settings)
    scores = json.loads((place / SUMMARY).read_text(encoding="utf-8"))["scores"]
    return RunResult(
        name,
        settings,
        "finished",
        after={f"{suite}/{score}": _number(found["mean"]) for score, found in scores.items()},
        intervals={
            f"{suite}/{score}": (found["low"], found["high"])
            for score, found in scores.items()
            if found["low"] is not None and found["high"] is not None
        },
        better={f"{suite}/{score}": found["better"] for score, found in scores.items() if "better" in found},
    )


def _suite(settings: Mapping[str, Any]) -> str | None:
    """The suite of an evaluation by its class; None for any other run."""
    target = settings.get("suite._target_")
    return None if target is None else str(target).rpartition(".")[2].lower()


def _better_in_training(place: Path, settings: Mapping[str, Any]) -> dict[str, str | None]:
    """Of the scores of suites that were asked in training, which values are the better ones."""
    found: dict[str, str | None] = {}
    for suite in suites_of(settings):
        for summary in sorted((place / "suites" / suite).glob(f"step-*/{SUMMARY}"))[:1]:
            scores = json.loads(summary.read_text(encoding="utf-8"))["scores"]
            found |= {
                f"eval_{suite}/{score}": own["better"] for score, own in scores.items() if "better" in own
            }
    return found


def _number(value: Any) -> float:
    """What JSON has null for is no number."""
    return math.nan if value is None else float(value)


def adapter_of(settings: Mapping[str, Any]) -> str:
    """Which adapter a run trains, in one word: `lora`, `half`, PEFT's name of another, or `none`."""
    named = settings.get(f"{ADAPTER}.type") or settings.get(f"{ADAPTER}._target_")
    if named is None:
        return "lora" if settings.get("model.lora.r") else "none"
    return str(named).rpartition(".")[2].lower()


def common_objective(runs: Sequence[RunResult]) -> str:
    """The metric that all runs were meant to be judged by; of evaluations alone the first one's first score.

    Raises:
        UserError: they differ.
    """
    judged = [run for run in runs if "objective" in run.settings]
    measured = {name for run in judged for name in run.after or {}}
    found = sorted({resolved(str(run.settings["objective"]), measured) for run in judged})
    if len(found) > 1:
        raise UserError(f"the runs have different objectives ({', '.join(found)}): choose one, metric=NAME.")
    if found:
        return found[0]
    return next((name for run in runs for name in run.after or {}), ACCURACY)


def rank(runs: Sequence[RunResult], metric: str, *, order: str = "auto") -> list[RunResult]:
    """The finished runs that have the metric, the best first; equal ones in their own order, NaN last.

    Args:
        runs: all runs.
        metric: by which they are ranked.
        order: `ascending` takes the lowest value as the best, `descending` the highest; `auto` what the metric itself
            says is better: the lowest of losses and negative log-probs, the highest of accuracies.

    Raises:
        UserError: no finished run has the metric, or nobody says which of its values are better.
    """
    values = {run.name: run.after[metric] for run in runs if run.after and metric in run.after}
    known = sorted({name for run in runs for name in run.after or {}})
    if known and not values:
        raise UserError(f"metric={metric} is in no run's results: use {', '.join(known)}.")
    lowest_first = order == "ascending" or (order == "auto" and better(runs, metric) == "lower")

    def place(run: RunResult) -> tuple[bool, float]:
        value = values[run.name]
        return math.isnan(value), 0.0 if math.isnan(value) else value if lowest_first else -value

    return sorted((run for run in runs if run.name in values), key=place)


def better(runs: Sequence[RunResult], metric: str) -> str:
    """`higher` or `lower`, as the one who made the metric says, else as its name does.

    Raises:
        UserError: it is declared to be neither.
    """
    said = {run.better[metric] for run in runs if metric in run.better}
    if None in said:
        raise UserError(
            f"metric={metric}: neither higher nor lower values are the better ones. Say which come first, "
            "order=ascending or order=descending, or rank by another metric."
        )
    if said:
        return str(said.pop())
    last = metric.rpartition("/")[2]
    return "lower" if any(last == name or last.endswith(f"_{name}") for name in _LESS) else "higher"


def differing(runs: Sequence[RunResult]) -> list[str]:
    """The settings in which the runs are not all alike, in the order of the configuration.

    Args:
        runs: of one kind; others have other settings altogether.
    """
    configured = [run.settings for run in runs if run.settings]
    keys = dict.fromkeys(key for settings in configured for key in settings)
    return [key for key in keys if key.partition(".")[0] not in _NOT_SETTINGS and _differs(key, configured)]


def _differs(key: str, configured: Sequence[Mapping[str, Any]]) -> bool:
    """Whether runs have a setting otherwise than others: of an adapter's keys, than others with the same adapter."""
    found: dict[Any, set[str]] = {}
    for settings in configured:
        group = settings.get(ADAPTER) if key.startswith(f"{ADAPTER}.") else None
        found.setdefault(group, set()).add(json.dumps(settings.get(key), default=str))
    return any(len(values) > 1 for values in found.values())


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
