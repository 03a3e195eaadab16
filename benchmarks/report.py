"""What was measured as ratios, a table, a JSON file and a picture."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

Results = dict[str, Any]
LABELS = {
    "ours": "ours",
    "ours_full": "ours, full",
    "trl": "TRL DPOTrainer",
    "padded": "padded rows",
}
NUMBERS = {"family": "cpu family", "model": "model"}  # in /proc/cpuinfo
RIVAL = {"dpo": "trl", "logo": "padded"}
TITLES = {
    "dpo": "DPO, 1 + 1 answers, against TRL's DPOTrainer",
    "logo": "LOGO, 1 + 2 answers, against padded rows",
}


def machine(threads: int) -> dict[str, Any]:
    """What the numbers depend on beside the code."""
    return {
        "processor": _processor(),
        "threads": threads,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "trl", "peft")},
    }


def _processor() -> str:
    """The model name that Linux knows with its numbers, `AMD EPYC (family 25, model 17)`; else what Python says."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    known = {key.strip(): value.strip() for key, value in found.items()}
    name = known.get("model name") or platform.processor() or platform.machine()
    # A virtual machine's name may say the maker alone.
    numbers = [f"{key} {known[word]}" for key, word in NUMBERS.items() if word in known]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def counted(measured: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rounds that did not just warm up."""
    return [step for step in measured["rounds"] if not step["warmup"]]


def compare(ours: Mapping[str, Any], rival: Mapping[str, Any]) -> dict[str, float]:
    """How one contestant stands against another on the same rows.

    Returns:
        `speed`: the rival's seconds over ours, median over the rounds of the ratio within each;
        `processor_speed`: the same of processor time, which other work on the machine hardly touches;
        `memory`: our peak over the rival's; `memory_above_model`: the same without what each had resident
        before its first step; `loss_difference`, `gradient_norm_difference`: relative, the largest of all rounds.
    """
    pairs = list(zip(ours["rounds"], rival["rounds"], strict=True))

    def ratio(key: str) -> float:
        both = zip(counted(ours), counted(rival), strict=True)
        return statistics.median(b[key] / a[key] for a, b in both)

    def difference(key: str) -> float:
        return max(abs(a[key] - b[key]) / abs(b[key]) for a, b in pairs)

    def above(measured: Mapping[str, Any]) -> float:
        return max(measured["peak_bytes"] - measured["loaded_bytes"], 1)

    return {
        "speed": ratio("seconds"),
        "processor_speed": ratio("processor_seconds"),
        "memory": ours["peak_bytes"] / rival["peak_bytes"],
        "memory_above_model": above(ours) / above(rival),
        "loss_difference": difference("loss"),
        "gradient_norm_difference": difference("gradient_norm"),
    }


def summarise(name: str, cell: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Medians of each contestant, and ours against the rival."""
    rival = RIVAL[name.split("/")[1]]
    found = {}
    for contestant, measured in cell["contestants"].items():
        found[contestant] = {
            **{
                key: statistics.median(step[key] for step in counted(measured))
                for key in ("seconds", "processor_seconds")
            },
            "peak_gb": measured["peak_bytes"] / 1e9,
            "above_model_gb": (measured["peak_bytes"] - measured["loaded_bytes"]) / 1e9,
        }
        if contestant != rival:
            found[contestant] |= compare(measured, cell["contestants"][rival])
    return found


def order(name: str) -> tuple[Any, ...]:
    """Cells by parameters, suite, then size."""
    parameters, suite, prompt, kind = name.split("/")
    return parameters, suite, int(prompt), kind


def table(results: Results) -> Table:
    """One line a contestant and cell."""
    shown = Table(title="A training step: forward and backward", title_justify="left")
    shown.add_column("method, what trains, prompt, answers")
    shown.add_column("contestant")
    for column in (
        "seconds",
        "speed",
        "by CPU time",
        "peak GB",
        "memory",
        "above model",
        "Δ loss",
        "Δ gradient",
    ):
        shown.add_column(column, justify="right")
    for name in sorted(results["cells"], key=order):
        cell = results["cells"][name]
        parameters, suite, prompt, _ = name.split("/")
        label = f"{suite}, {parameters}, {prompt}, {' + '.join(str(length) for length in cell['answers'])}"
        for contestant, row in summarise(name, cell).items():
            shown.add_row(label, LABELS[contestant], *_figures(row))
            label = ""
        shown.add_section()
    return shown


def _figures(row: Mapping[str, float]) -> list[str]:
    """Seconds and peak, each followed by the ratios that belong to it; the rival has none."""
    seconds, peak = f"{row['seconds']:.2f}", f"{row['peak_gb']:.2f}"
    if "speed" not in row:
        return [seconds, "", "", peak, "", "", "", ""]
    return [
        seconds,
        f"{row['speed']:.2f} ×",
        f"{row['processor_speed']:.2f} ×",
        peak,
        f"{row['memory']:.2f} ×",
        f"{row['memory_above_model']:.2f} ×",
        f"{row['loss_difference']:.0e}",
        f"{row['gradient_norm_difference']:.0e}",
    ]


def write(results: Results, folder: Path) -> None:
    """`forward.json`, with the summary beside every cell's rounds, and `forward.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, cell in results["cells"].items():
        cell["summary"] = summarise(name, cell)
    (folder / "forward.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    draw(results, folder / "forward.png")


def draw(results: Results, path: Path) -> None:
    """Seconds and peak memory, one row of panels for each comparison; bars carry their ratio to the rival."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = sorted({tuple(name.split("/")[:2]) for name in results["cells"]})
    figure, axes = pyplot.subplots(len(groups), 2, figsize=(12, 3.8 * len(groups)), squeeze=False)
    for panels, (parameters, suite) in zip(axes, groups, strict=True):
        names = sorted((n for n in results["cells"] if n.startswith(f"{parameters}/{suite}/")), key=order)
        for axis, key, ratio, label in zip(
            panels,
            ("seconds", "peak_gb"),
            ("speed", "memory"),
            ("seconds a step", "peak memory, GB"),
            strict=True,
        ):
            _bars(axis, [(n, results["cells"][n]) for n in names], key=key, ratio=ratio)
            axis.set_ylabel(label)
        panels[0].set_title(f"{TITLES[suite]} ({parameters})", loc="left", fontsize=10)
        panels[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bars(axis: Any, cells: list[tuple[str, Mapping[str, Any]]], *, key: str, ratio: str) -> None:
    """One group of bars a cell."""
    # Of cells that were measured at different times some may lack a contestant.
    contestants = [each for each in LABELS if any(each in cell["contestants"] for _, cell in cells)]
    width = 0.8 / len(contestants)
    for place, contestant in enumerate(contestants):
        shift = (place - (len(contestants) - 1) / 2) * width
        rows = {
            index + shift: summarise(name, cell)[contestant]
            for index, (name, cell) in enumerate(cells)
            if contestant in cell["contestants"]
        }
        bars = axis.bar(list(rows), [row[key] for row in rows.values()], width, label=LABELS[contestant])
        labels = [f"{row[ratio]:.2f}×" if ratio in row else "" for row in rows.values()]
        axis.bar_label(bars, labels, fontsize=7, padding=2, rotation=90)
    axis.set_xticks(range(len(cells)))
    axis.set_xticklabels([f"{name.split('/')[2]}\n{name.split('/')[3]}" for name, _ in cells], fontsize=8)
    axis.set_xlabel("prompt, tokens; answers of equal or unequal length", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
