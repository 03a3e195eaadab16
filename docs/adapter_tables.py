"""Tables of what adapters cost and keep, from `benchmarks/results/`; see tables.py."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.forgetting.arms import SETTINGS
from benchmarks.forgetting.report import cells_of, claim, outcomes
from docs.tables import read, table

_PARTS = {
    "seconds": "seconds of a step",
    "weights": "weights, the reference's among them",
    "gradients": "gradients",
    "optimizer": "optimizer's state",
}


def half() -> str:
    """Half of the weights against all of them (`benchmarks/half.py`)."""
    found = read("half.json")
    full, own = found["cells"]["full"], found["cells"]["half"]
    rows = []
    for key, label in _PARTS.items():
        values = [
            f"{cell[key]:.2f}" if key == "seconds" else f"{cell[key] / 2**30:.2f} GB" for cell in (full, own)
        ]
        rows.append([label, *values, f"{found['ratios'][key]:.2f} ×"])
    made = table(["", "all parameters", "`adapter=half`", "half / all"], rows)
    return made + (
        f"\nSmolLM2-135M, DPO, prompt of {found['prompt']:,} tokens, two answers of {found['answer']}, fp32, "
        f"{found['threads']} CPU threads, medians of {found['rounds']} steps in turns.\n"
    )


def forgetting() -> str:
    """What is kept of an old task at equal gain on a new one (`benchmarks/forgetting`)."""
    known = read("forgetting.json")
    rows = []
    for setting in SETTINGS:
        found = outcomes(known, setting)
        rows += [[f"`{setting}`", f"`{arm}`", *cells_of(outcome)] for arm, outcome in found.items()]
        rows.append([f"`{setting}`", "HFT's claim", "", "", "", "", claim(found)])
    return table(["setting", "arm", "kept", "− full, points", "95 % interval", "each seed", "verdict"], rows)


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("docs/adapters.md", "half"): half,
    ("docs/replication.md", "forgetting"): forgetting,
}
