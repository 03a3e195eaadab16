"""Runs the protocol: rates with seed 0, then the cells, then the table.

python -m benchmarks.forgetting               # all; what is in the results already is not run again
python -m benchmarks.forgetting --table       # the table alone
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from align.core.files import write_json
from benchmarks.forgetting.arms import ARMS, RATES, SETTINGS
from benchmarks.forgetting.cells import run, steps_to_gain
from benchmarks.forgetting.report import table

RESULTS = Path(__file__).parents[1] / "results" / "forgetting.json"
SEEDS = (3, 4)


def main() -> None:
    """Fills the results and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    known: dict[str, Any] = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
    if not arguments.table:
        fill(known, arguments.results)
    Console(width=130).print(table(known))


def fill(known: dict[str, Any], path: Path) -> None:
    """Every rate and cell that is not known yet, each written at once."""
    todo = [(setting, arm) for setting in SETTINGS for arm in ARMS]
    for number, (setting, arm) in enumerate(todo, start=1):
        print(f"{number} of {len(todo)}: {setting}, {arm}", flush=True)
        rates = known.setdefault("rates", {}).setdefault(f"{setting}/{arm}", {})
        for rate in RATES:
            if str(rate) not in rates:
                found = run(setting, arm, 0, rate=rate)
                steps = steps_to_gain(found)
                rates[str(rate)] = {"steps": steps if steps < float("inf") else None, "best": best(found)}
                write_json(path, known)
        rate = chosen(rates)
        for seed in SEEDS:
            cells = known.setdefault("cells", {})
            if f"{setting}/{arm}/seed{seed}" not in cells:
                cells[f"{setting}/{arm}/seed{seed}"] = run(setting, arm, seed, rate=rate)
                write_json(path, known)


def best(found: dict[str, Any]) -> float:
    """The largest share of the new task's questions on the way."""
    return max(new for _, _, new in found["curve"])


def chosen(rates: dict[str, Any]) -> float:
    """The rate with the fewest steps to the gain; where none reaches it, the one that came nearest."""
    reached = {rate: cell["steps"] for rate, cell in rates.items() if cell["steps"] is not None}
    if reached:
        return float(min(reached, key=lambda rate: (reached[rate], float(rate))))
    return float(max(rates, key=lambda rate: rates[rate]["best"]))


if __name__ == "__main__":
    main()
