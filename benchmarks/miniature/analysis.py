"""From cells to claims: paired differences over questions, and the verdicts that PROTOCOL.md fixes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.core.errors import UserError
from align.evaluation.intervals import Interval
from align.scores.wilson import LEVEL

RESAMPLES = 10_000  # draws of questions for an interval

BEYOND = {"qa": ("beyond",), "find": ("beyond_256", "beyond_1024")}
LONG = {part: ("trained", *beyond) for part, beyond in BEYOND.items()}
# Parts whose conditions ask the same questions in the same order: a question's scores are averaged. Elsewhere the
# conditions have questions of their own, which stand side by side.
SAME_QUESTIONS = ("qa",)
TOLERANCE = -0.01  # claim b: what short-context accuracy may lose


@dataclass(frozen=True)
class Comparison:
    """`first` − `second` over some conditions; `least` is what the lower bound has to pass.

    Attributes:
        first, second: methods; `a+b` is the mean of a question's scores with both.
        keeps: the claim is that nothing is lost: the difference itself has to be `least` or more.
        against: the second's conditions, where they are others.
    """

    claim: str
    part: str
    first: str
    second: str
    conditions: tuple[str, ...]
    keeps: bool = False
    against: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.first} − {self.second}"

    @property
    def at(self) -> str:
        """For the table."""
        sides = (self.conditions, self.against) if self.against else (self.conditions,)
        return " − ".join(" + ".join(side) for side in sides)


@dataclass(frozen=True)
class Difference:
    """A comparison's outcome.

    Attributes:
        interval: over questions, each averaged over the seeds.
        by_seed: seed → the mean difference.
    """

    comparison: Comparison
    interval: Interval
    by_seed: Mapping[int, float]


def comparisons() -> list[Comparison]:
    """All comparisons of the protocol, in its order."""
    found = []
    for part in ("qa", "find"):
        for other in ("base", "sft", "logo"):
            found.append(Comparison("a", part, "logo_positions", other, BEYOND[part]))
    for part in ("qa", "find"):
        for other in ("base", "sft", "dpo"):
            found.append(Comparison("b", part, "longpo", other, LONG[part]))
        found.append(Comparison("b", part, "longpo", "base", ("alone",), keeps=True))
    found.append(Comparison("c", "write", "sft", "base", ("length_score",)))
    found.append(Comparison("c", "write", "dpo", "sft", ("length_score",)))
    return found


def ablations() -> list[Comparison]:
    """What looks for reasons, in PROTOCOL.md's order; no claim rests on it."""
    trained, short = ("trained",), ("alone",)
    found = []
    for part in ("find", "qa"):
        for first, second in (("sft_positions", "sft"), ("logo_positions", "sft_positions")):
            for conditions in (BEYOND[part], trained):
                found.append(Comparison("positions", part, first, second, conditions))
    both = ("logo_positions+sft_positions", "logo+sft")
    found.append(Comparison("positions", "qa", *both, BEYOND["qa"]))
    for conditions in (trained, BEYOND["qa"]):
        found.append(Comparison("length", "qa", "base_diluted", "base", ("diluted",), against=conditions))
    for name in ("dpo", "simpo", "longpo"):
        found.append(Comparison("rate", "find", f"{name}_slow", name, trained))
        found.append(Comparison("rate", "find", f"{name}_slow", "base", trained))
    for part, others in (("find", ("longpo", "base")), ("qa", ("longpo", "sft", "dpo"))):
        for other in others:
            for conditions in (LONG[part], short):
                found.append(Comparison("NLL of", part, "longpo_answer", other, conditions))
    for name, what in (("dpo_half", "steps"), ("dpo_decay", "decay")):
        for other in ("sft", "dpo"):
            found.append(Comparison(what, "write", name, other, ("length_score",)))
    return found


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Cell → its JSON, for every finished one.

    Raises:
        UserError: two cells of a part were asked different questions under the same conditions.
    """
    found = {}
    asked: dict[tuple[str, ...], tuple[str, str]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        found[result["cell"]] = result
        if "asked_sha256" in result:
            conditions = (result["part"], *sorted(result["scores"]))
            first = asked.setdefault(conditions, (result["asked_sha256"], result["cell"]))
            if first[0] != result["asked_sha256"]:
                raise UserError(
                    f"{folder}: {first[1]} and {result['cell']} were asked different questions: "
                    "remove the older of the two and run it again."
                )
    return found


def seeds_of(results: Mapping[str, Mapping[str, Any]], part: str, method: str) -> list[int | None]:
    """The seeds of a method's finished cells; [None] where it has none because nothing is drawn."""
    return [
        result["seed"]
        for result in results.values()
        if result["part"] == part and result["method"] == method and "scores" in result
    ]


def scores(
    results: Mapping[str, Mapping[str, Any]],
    part: str,
    method: str,
    seed: int | None,
    conditions: Sequence[str],
) -> np.ndarray:
    """`[questions]` scores of one cell; a method without seeds answers for every seed."""
    own = f"{part}/{method}/seed{seed}"
    cell = results[own if own in results else f"{part}/{method}"]
    found = [np.asarray(cell["scores"][condition], dtype=np.float64) for condition in conditions]
    return np.mean(found, axis=0) if part in SAME_QUESTIONS else np.concatenate(found)


def compare(results: Mapping[str, Mapping[str, Any]], comparison: Comparison) -> Difference | None:
    """The difference over the seeds that both methods have; None where there is none yet."""
    sides = [side.split("+") for side in (comparison.first, comparison.second)]
    have = [
        set.intersection(*(set(seeds_of(results, comparison.part, name)) for name in side)) for side in sides
    ]
    seeded = [seeds for seeds in have if seeds != {None}]
    if not all(have):
        return None
    seeds = set.intersection(*seeded) if seeded else {None}
    if not seeds:
        return None
    ordered = sorted(seeds, key=lambda seed: -1 if seed is None else seed)
    table = [
        [
            np.mean([scores(results, comparison.part, name, seed, at) for name in side], axis=0)
            for side, at in zip(
                sides, (comparison.conditions, comparison.against or comparison.conditions), strict=True
            )
        ]
        for seed in ordered
    ]
    first, second = np.mean(table, axis=0)
    return Difference(
        comparison,
        bootstrap(first - second),
        {
            -1 if seed is None else seed: float((one - other).mean())
            for seed, (one, other) in zip(ordered, table, strict=True)
        },
    )


def bootstrap(values: np.ndarray, *, seed: int = 0) -> Interval:
    """The mean of `[questions]` values and its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    The protocol fixes it; questions are many here, and where all have one value the interval is a point.
    """
    rng = np.random.default_rng(seed)
    block = max(1, 2_000_000 // values.size)
    sizes = [min(block, RESAMPLES - start) for start in range(0, RESAMPLES, block)]
    means = [values[rng.integers(0, values.size, (size, values.size))].mean(1) for size in sizes]
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high), values.size, values.size)


def verdict(outcomes: Sequence[Difference | None], *, seeds: int = 2) -> str:
    """`replicated`, `contradicted`, `not shown` or `open`, of one claim's comparisons in one part."""
    if any(outcome is None or len(outcome.by_seed) < seeds for outcome in outcomes):
        return "open: cells are missing"
    known = [outcome for outcome in outcomes if outcome is not None]
    raises = [outcome for outcome in known if not outcome.comparison.keeps]
    keeps = [outcome for outcome in known if outcome.comparison.keeps]
    if any(outcome.interval.high < 0 for outcome in raises) or any(
        outcome.interval.high < TOLERANCE for outcome in keeps
    ):
        return "contradicted"
    clear = all(outcome.interval.low > 0 and min(outcome.by_seed.values()) > 0 for outcome in raises)
    kept = all(outcome.interval.mean >= TOLERANCE for outcome in keeps)
    if not clear or not kept:
        return "not shown"
    if all(outcome.interval.low >= TOLERANCE for outcome in keeps):
        return "replicated"
    return "replicated, but the sample is too small to show that the short scores stay within a point"


def mean_of(
    results: Mapping[str, Mapping[str, Any]], part: str, method: str, condition: str
) -> Interval | None:
    """A method's mean over questions, each averaged over its seeds."""
    seeds = seeds_of(results, part, method)
    if not seeds:
        return None
    values = np.mean([scores(results, part, method, seed, (condition,)) for seed in seeds], axis=0)
    return bootstrap(values)
