"""What the documentation shows of GPUs: the stages of `make gpu`, and the first look's tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from benchmarks.gpu import summary
from benchmarks.gpu.results import STAGES, newest
from docs.tables import read, table

# Stage → what it holds against what.
ABOUT = {
    "environment": "matrix products, memory, the way to the host",
    "kernels": "every attention kernel against fp64, forward and gradients",
    "step": "gradients against padded rows, levers, margins, a killed run, tests marked `gpu`",
    "speed": "a step against TRL's `DPOTrainer` and padded rows",
    "length": "the longest prompt of a step",
    "planner": "`align plan` against measured memory and seconds",
    "miniature": "the papers' claims with 1,008 held-out questions and four seeds",
}


def stages() -> str:
    """Each stage, what it is about, and its newest result, or `not run`."""
    found = summary.lines()
    return table(
        ["stage", "what", "result"], [[f"`{stage}`", ABOUT[stage], found[stage]] for stage in STAGES]
    )


def on_cards() -> str:
    """README's list of what has run on which card, with date and commit."""
    looks = {
        "exactness, speed and length of a step": "gpu/first_look-H100.json",
        "exactness and the tests of torch's kernels": "gpu/second_look-H100.json",
    }
    found = {what: read(path) for what, path in looks.items()}
    lines = [
        f"- {one['card']}, {one['date']}, commit `{one['commit']}`: {what}." for what, one in found.items()
    ]
    return "\n".join([*lines, f"- {proof()}"]) + "\n"


def proof() -> str:
    """One sentence: which stages have run on which card, and which have not."""
    cards: dict[str, list[str]] = {}
    for stage in STAGES:
        result = newest(stage)
        said = (
            "not run yet" if result is None else f"{result[0]} ({result[1]['date']}, `{result[1]['commit']}`)"
        )
        cards.setdefault(said, []).append(stage)
    return "`make gpu`: " + "; ".join(f"{', '.join(names)}: {said}" for said, names in cards.items()) + "."


def contestants() -> str:
    """Every step of stage `speed`, ours and the rivals'."""

    def row(name: str, cell: Any) -> list[str]:
        if "tokens_per_s" not in cell:
            return [name, str(cell["error"]) if "error" in cell else "", "", "", ""]
        numbers = (f"{cell['seconds']:.2f} s", f"{cell['tokens_per_s']:,.0f}", f"{cell['peak_gib']:.1f} GiB")
        return [name, *numbers, f"{100 * cell['mfu']:.0f} %"]

    headings = ["job", "a step", "tokens/s", "peak memory", "of the matrix rate"]
    return _of_cells("speed", headings, lambda cell: bool(cell.keys() & {"tokens_per_s", "error"}), row)


def lengths() -> str:
    """The longest prompts of stage `length`."""

    def row(name: str, cell: Any) -> list[str]:
        at = cell["at"] or {}
        cost = [f"{at['seconds']:.1f} s", f"{at['peak_gib']:.1f} GiB"] if at else ["", ""]
        return [name, summary.longest(cell), f"{cell['planned']:,}", *cost, str(at.get("layers", ""))]

    headings = ["job", "longest prompt", "planned", "a step", "peak memory", "layers measured"]
    return _of_cells("length", headings, lambda cell: "longest" in cell, row)


def plans() -> str:
    """Predicted against measured of stage `planner`."""

    def row(name: str, cell: Any) -> list[str]:
        predicted, measured, error = cell["predicted"], cell["measured"], cell["error"]
        memory = [f"{predicted['gib']:.1f} / {measured['gib']:.1f} GiB", f"{100 * error['memory']:+.1f} %"]
        seconds = [
            f"{predicted['seconds']:.2f} / {measured['seconds']:.2f} s",
            f"{100 * error['time']:+.1f} %",
        ]
        return [name, *memory, *seconds, f"{cell['mfu']['reached']:.2f}"]

    headings = [
        "job",
        "memory, predicted / measured",
        "error",
        "a step, predicted / measured",
        "error",
        "`mfu` reached",
    ]
    return _of_cells("planner", headings, lambda cell: "predicted" in cell, row)


def _of_cells(
    stage: str, headings: list[str], shown: Callable[[Any], bool], row: Callable[[str, Any], list[str]]
) -> str:
    """A row for each cell of the newest result that is shown; a line where there is none."""
    found = newest(stage)
    if found is None:
        return f"`{stage}`: not run.\n"
    cells = {
        name: cell for name, cell in found[1]["result"].items() if isinstance(cell, dict) and shown(cell)
    }
    return table(headings, [row(name, cell) for name, cell in cells.items()])


def gpu_speed() -> str:
    """A step on one H100 against padded rows through the library's forward."""
    rows = []
    for name, cell in read("gpu/first_look-H100.json")["speed"].items():
        prompt, answers = name.split(" + ", 1)
        ours, padded = cell["ours"], cell["padded"]
        rows.append(
            [
                *(f"{int(prompt):,}", answers.strip("()").replace(", ", " + ")),
                *(f"{ours['seconds']:.2f} s", f"{padded['seconds']:.2f} s", f"{cell['ratio'][0]:.2f} ×"),
                *(f"{ours['peak_gib']:.1f} GiB", f"{padded['peak_gib']:.1f} GiB"),
            ]
        )
    return table(["prompt", "answers", "here", "padded rows", "speed", "peak here", "peak padded"], rows)


def gpu_length() -> str:
    """How long a step may be on one H100, 8B with LoRA."""
    rows = []
    for name, cell in read("gpu/first_look-H100.json")["length"].items():
        checkpointing, rest = name.split(" ", 1)
        levers, prompt = rest.rsplit(" ", 1)
        keys = re.findall(r"'(\w+)': '?(\w+)'?", levers)
        settings = [
            f"memory.checkpointing={checkpointing}",
            *(f"memory.{key}={value}" for key, value in keys),
        ]
        found = (
            ["out of memory", ""]
            if isinstance(cell, str)
            else [f"{cell['seconds']:.1f} s", f"{cell['peak_gib']:.1f} GiB"]
        )
        rows.append([f"`{' '.join(settings)}`", f"{int(prompt):,}", *found])
    return table(["settings", "prompt", "a step", "peak memory"], rows)


# (page, marker) → what stands between the markers.
TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("README.md", "gpu"): on_cards,
    ("docs/performance.md", "gpu stages"): stages,
    ("docs/performance.md", "gpu contestants"): contestants,
    ("docs/performance.md", "gpu lengths"): lengths,
    ("docs/performance.md", "gpu plans"): plans,
    ("docs/performance.md", "gpu speed"): gpu_speed,
    ("docs/performance.md", "gpu length"): gpu_length,
}
