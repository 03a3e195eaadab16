"""The planner's tables: the longest prompts, predictions against an H100's peaks, and simulations past one GPU."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from align.planning.job import Job, Levers, Precision, Rows, Strategy
from align.planning.length_plan import make_length_plan, shown
from align.planning.memory import predict
from align.planning.tables import lever_overrides
from align.runs.composition import compose_command
from benchmarks.gpu_rates import large
from benchmarks.plan_scale import cluster
from benchmarks.plan_scale_report import GROWN_HEADINGS, grown_rows, mark, percent, thousands
from docs.tables import read, table

EXCHANGES = ("ulysses", "gather")
LENGTHS = (65536, 262144, 1048576)  # tokens of a row, of those that are simulated


LONGEST = (
    "goal=length model=llama3_8b model.lora.r=16 method=logo rows.rejected=2 gpus=h100_80gb gpus.count=1"
)
GIB = 2**30


def longest() -> str:
    """What `align plan goal=length` finds for an 8B with LoRA on one H100."""
    plan = make_length_plan(compose_command("plan", shlex.split(LONGEST)))
    rows = []
    for one in shown(plan.ways):
        host = f"{one.priced.memory.host / 1e9:.0f} GB" if one.priced.memory.host else ""
        levers = " ".join(word for word in lever_overrides(one.levers) if "logits_chunk" not in word)
        rows.append([f"{one.prompt:,}", f"`{levers}`", host, f"{one.priced.time.total:,.0f} s", one.bound])
    prompts = plan.ways[0].priced.time.prompts
    return table(["prompt", "levers", "host memory", f"a step of {prompts} prompts", "bounded by"], rows)


def peaks() -> str:
    """Predicted against measured peaks of an 8B with LoRA on an H100; the runtime is no tensor of torch's.

    The code of that day ran the last norm over the whole row.
    """
    model, rows = replace(large(), norm_of_scored=False), []
    for name, cell in read("gpu/first_look-H100.json")["length"].items():
        if not isinstance(cell, dict):
            continue
        mode, _, rest = name.partition(" ")
        levers, _, prompt = rest.rpartition(" ")
        strategy = Strategy(levers=Levers(mode, **ast.literal_eval(levers)))
        memory = predict(model, Job(Rows(int(prompt), (512,) * 3), Precision(2)), strategy, cluster(1))
        planned = (memory.total - memory.runtime) / GIB
        error = f"{100 * (planned / cell['peak_gib'] - 1):+.1f} %".replace("-", "−")
        said = " ".join(
            word for word in lever_overrides(strategy.levers) if "logits" not in word and "null" not in word
        ).replace(" memory.offload=none", "")
        rows.append(
            [
                f"{int(prompt):,}",
                f"`{said}`",
                f"{planned:.1f}",
                f"{cell['peak_gib']:.1f}",
                error,
                memory.phase,
            ]
        )
    return table(["prompt", "settings", "predicted, GiB", "measured, GiB", "error", "peak in"], rows)


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


def orders() -> str:
    """Seconds of a step by how rows are ordered and shared out, over those with one degree and rows as they come."""
    ways = ("one degree, shared out", "one degree, buckets", "a degree a step, buckets", "a degree a row")
    rows = []
    for cell in read("degrees_by_step.json")["cells"]:
        seconds = cell["seconds"]
        plain = seconds["one degree, as they come"]
        if cell["prompts"] == 4 * cell["gpus"]:
            stretched = "" if cell["stretch"] == 1 else f" × {cell['stretch']}"
            shares = [f"~{seconds[way] / plain:.2f}" for way in ways]
            rows.append([cell["cluster"], f"{cell['data']}{stretched}", f"{cell['longest']:,}", *shares])
    headings = ["shared out", "buckets", "and a degree a step", "a degree a row (FlexSP)"]
    return table(["GPUs", "rows", "longest, tokens", *headings], rows)


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("docs/planning.md", "longest prompts"): longest,
    ("docs/planning.md", "H100 peaks"): peaks,
    ("docs/planning.md", "simulated orders"): orders,
    ("docs/scaling.md", "simulated LoRA"): grown,
    ("docs/scaling.md", "simulated clusters"): clusters,
}
