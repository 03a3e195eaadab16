"""From cells to the table that PROTOCOL.md fixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from align.evaluation.intervals import Interval
from benchmarks.forgetting.arms import ARMS, SETTINGS
from benchmarks.miniature.analysis import bootstrap

SEEDS = (3, 4)
ORDER = (*ARMS, "interpolated")


@dataclass(frozen=True)
class Outcome:
    """An arm in a setting.

    Attributes:
        kept: the old task's share at equal gain, mean over the seeds; None where a seed did not get there.
        difference: to `full`, over questions.
        by_seed: the same of each seed.
        best: the new task's best share, the lower of the seeds.
    """

    kept: float | None
    difference: Interval | None
    by_seed: tuple[float, ...]
    best: float

    @property
    def verdict(self) -> str:
        """`more`, `less` or `not shown`, against `full`."""
        if self.difference is None:
            return "no gain" if self.kept is None else ""
        if self.difference.low > 0 and min(self.by_seed) > 0:
            return "more"
        return "less" if self.difference.high < 0 and max(self.by_seed) < 0 else "not shown"


def outcomes(known: Mapping[str, Any], setting: str) -> dict[str, Outcome]:
    """Every arm that both seeds have finished."""
    found: dict[str, Outcome] = {}
    full = _scores(known, setting, "full")
    for arm in ORDER:
        cells = _cells(known, setting, arm)
        if len(cells) < len(SEEDS):
            continue
        best = min(max(new for _, _, new in cell["curve"]) for cell in cells)
        scores = _scores(known, setting, arm)
        if scores is None:
            found[arm] = Outcome(None, None, (), best)
        elif arm == "full" or full is None:
            found[arm] = Outcome(float(scores.mean()), None, (), best)
        else:
            apart = scores - full
            found[arm] = Outcome(
                float(scores.mean()), bootstrap(apart.mean(0)), tuple(apart.mean(1).tolist()), best
            )
    return found


def claim(found: Mapping[str, Outcome]) -> str:
    """HFT's: both masks keep more than all parameters."""
    verdicts = [found[arm].verdict for arm in ("half_a", "half_b") if arm in found]
    if len(verdicts) < 2:
        return "open"
    if "less" in verdicts:
        return "contradicted"
    return "replicated" if verdicts == ["more", "more"] else "not shown"


def _cells(known: Mapping[str, Any], setting: str, arm: str) -> list[dict[str, Any]]:
    source = "full" if arm == "interpolated" else arm
    cells = [known.get("cells", {}).get(f"{setting}/{source}/seed{seed}") for seed in SEEDS]
    return [cell["interpolated"] if arm == "interpolated" else cell for cell in cells if cell is not None]


def _scores(known: Mapping[str, Any], setting: str, arm: str) -> np.ndarray | None:
    """`[seeds, questions]` of the old task at equal gain; None where a seed has none."""
    cells = _cells(known, setting, arm)
    if len(cells) < len(SEEDS) or any(cell["reached"] is None for cell in cells):
        return None
    return np.array([cell["reached"]["old"] for cell in cells], dtype=float)


def table(known: Mapping[str, Any]) -> Table:
    """One line an arm and setting."""
    result = Table(title="Kept of the old task at equal gain on the new one", title_justify="left")
    for column in ("setting", "arm", "kept", "− full", "95 % interval", "seeds", "verdict"):
        result.add_column(column, no_wrap=True)
    for setting in SETTINGS:
        found = outcomes(known, setting)
        for arm, outcome in found.items():
            result.add_row(setting, arm, *cells_of(outcome))
        result.add_row(setting, "HFT's claim", "", "", "", "", claim(found), end_section=True)
    return result


def cells_of(outcome: Outcome) -> list[str]:
    """An outcome in the table's words: shares in percent, differences in points."""
    if outcome.kept is None:
        return ["–", "", "", f"new task {100 * outcome.best:.0f} % at best", outcome.verdict]
    if outcome.difference is None:
        return [f"{100 * outcome.kept:.1f} %", "", "", "", outcome.verdict]
    low, high = 100 * outcome.difference.low, 100 * outcome.difference.high
    return [
        f"{100 * outcome.kept:.1f} %",
        f"{100 * outcome.difference.mean:+.1f}",
        f"[{low:+.1f}, {high:+.1f}]",
        ", ".join(f"{100 * each:+.1f}" for each in outcome.by_seed),
        outcome.verdict,
    ]
