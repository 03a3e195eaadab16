"""The miniature's tables for the documentation: accuracy by method, and the claims with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from benchmarks import minimum_tuning as minimum
from benchmarks.miniature.analysis import (
    Comparison,
    ablations,
    compare,
    comparisons,
    mean_of,
    read_results,
    verdict,
)
from benchmarks.miniature.report import CLAIMS, LABELS, MAIN
from docs.tables import RESULTS, read, table

# Conditions of the short table: part, condition, heading.
COLUMNS = (
    ("qa", "alone", "gold passage alone"),
    ("qa", "trained", "6 passages (trained on)"),
    ("qa", "beyond", "24 passages"),
    ("find", "trained", "`find`: 48 words (trained on)"),
    ("find", "beyond_256", "256"),
    ("find", "beyond_1024", "1,024"),
)


@cache
def results() -> Mapping[str, Mapping[str, Any]]:
    """Every finished cell."""
    found: Mapping[str, Mapping[str, Any]] = read_results(RESULTS / "miniature")
    return found


def accuracy() -> str:
    """Percent by method and condition, the mean over the seeds."""
    rows = []
    for method in MAIN:
        means = (mean_of(results(), part, method, condition) for part, condition, _ in COLUMNS)
        found = ["–" if mean is None else f"{100 * mean.mean:.1f}" for mean in means]
        rows.append([LABELS.get(method, method), *found])
    return table(["method", *(heading for _, _, heading in COLUMNS)], rows)


def signed(value: float, part: str) -> str:
    """Points with a sign; the score of `write` has 100 points already."""
    return f"{(1.0 if part == 'write' else 100.0) * value:+.1f}".replace("-", "−")


def difference(comparison: Comparison) -> tuple[str, str, str]:
    """Mean, interval over questions and each seed's own mean of a comparison, as text."""
    found = compare(results(), comparison)
    assert found is not None, comparison
    low, mean, high = (
        signed(value, comparison.part)
        for value in (found.interval.low, found.interval.mean, found.interval.high)
    )
    seeds = ", ".join(signed(value, comparison.part) for _, value in sorted(found.by_seed.items()))
    return mean, f"[{low}, {high}]", seeds


def claims() -> str:
    """Every comparison of the protocol, and what each claim comes to."""
    rows = []
    for claim, text in CLAIMS.items():
        for part in ("qa", "find", "write"):
            own = [c for c in comparisons() if (c.claim, c.part) == (claim, part)]
            if not own:
                continue
            outcome = verdict([compare(results(), comparison) for comparison in own])
            rows.append([f"**{claim}**", f"`{part}`", f"**{outcome}**: {text}", "", "", "", ""])
            rows += [["", "", c.name, c.at, *difference(c)] for c in own]
    return table(["claim", "part", "difference", "at", "points", "95 % interval", "by seed"], rows)


def looked_at() -> str:
    """Every ablation."""
    rows = [[c.claim, f"`{c.part}`", c.name, c.at, *difference(c)] for c in ablations()]
    return table(["looks at", "part", "difference", "at", "points", "95 % interval", "by seed"], rows)


def minimum_tuning() -> str:
    """S_l of each arm, the differences of the protocol, and what its claim comes to."""
    seeds = read("minimum_tuning.json")["seeds"]
    rows = []
    for arm in ("base", *minimum.ARMS):
        own = [seeds[seed][arm] for seed in sorted(seeds)]
        means = [sum(one["length_score"]) / len(one["length_score"]) for one in own]
        trained = ", ".join(str(one["rows"]) for one in own)
        rows.append([arm, trained, f"{sum(means) / len(means):.1f}", "", _listed(means, "{:.1f}")])
    outcome = "shown" if minimum.shown(seeds) else "not shown"
    for first, second in minimum.DIFFERENCES:
        found = minimum.difference(seeds, first, second)
        means = [sum(one) / len(one) for _, one in sorted(minimum.by_seed(seeds, first, second).items())]
        low, mean, high = (signed(value or 0.0, "write") for value in (found.low, found.mean, found.high))
        claim = f" (**{outcome}**)" if (first, second) == minimum.DIFFERENCES[0] else ""
        rows.append([f"{first} − {second}{claim}", "", mean, f"[{low}, {high}]", _listed(means, "{:+.1f}")])
    return table(["arm", "rows, by seed", "S_l", "95 % interval", "by seed"], rows)


def _listed(values: Sequence[float], form: str) -> str:
    return ", ".join(form.format(value) for value in values).replace("-", "−")


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("docs/replication.md", "miniature"): accuracy,
    ("docs/replication.md", "claims"): claims,
    ("docs/replication.md", "ablations"): looked_at,
    ("docs/replication.md", "minimum tuning"): minimum_tuning,
}
