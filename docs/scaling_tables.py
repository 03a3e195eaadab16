"""The simulated tables of docs/scaling.md, from `benchmarks/results/plan_scale.json`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.plan_scale_report import GROWN_HEADINGS, grown_rows, mark, percent, thousands
from docs.tables import read, table

EXCHANGES = ("ulysses", "gather")
LENGTHS = (65536, 262144, 1048576)  # tokens of a row, of those that are simulated


def grown() -> str:
    """An 8B with LoRA from one GPU on."""
    return table(GROWN_HEADINGS, grown_rows(read("plan_scale.json")["grown"]))


def clusters() -> str:
    """All parameters: at each length and number of GPUs the fastest of the exchanges that training has."""
    cells = [cell for cell in read("plan_scale.json")["cells"] if cell["exchange"] in EXCHANGES]
    counts = sorted({cell["gpus"] for cell in cells})
    rows = []
    for count in counts:
        here = [[cell for cell in cells if (cell["gpus"], cell["length"]) == (count, n)] for n in LENGTHS]
        rows.append([str(count), *map(_fastest, here)])
    return table(["GPUs", *(f"{thousands(length)} tokens" for length in LENGTHS)], rows)


def _fastest(cells: list[dict[str, Any]]) -> str:
    fitting = [cell for cell in cells if cell["fits"]]
    if not fitting:
        return "does not fit"
    best = min(fitting, key=lambda cell: cell["overlapped_seconds_per_prompt"])
    way = "none" if best["degree"] == 1 else f"{best['exchange']} × {best['degree']}"
    seconds, waits = best["overlapped_seconds_per_prompt"], best["exposed_share"]
    shown = f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"
    return f"{mark(best)}{shown} s, waits {mark(best)}{percent(waits)}, {way}, {best['wrapper']}"


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("docs/scaling.md", "simulated LoRA"): grown,
    ("docs/scaling.md", "simulated clusters"): clusters,
}
