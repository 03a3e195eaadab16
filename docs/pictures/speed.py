"""README's picture: a step on one H100 against padded rows (benchmarks/results/gpu/first_look-H100.json)."""

from __future__ import annotations

import json
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.pictures.style import CHOSEN, GREY, PROMPT, REJECTED, RESULTS, plain

PROMPTS = (4096, 16384, 32768, 65536)
ANSWERS = {"1 + 1 answers": "(512, 512)", "1 + 2 answers": "(512, 512, 512)"}


def measured() -> dict[str, Any]:
    """The whole results file."""
    found: dict[str, Any] = json.loads((RESULTS / "gpu" / "first_look-H100.json").read_text())
    return found


def line(axes: Axes, values: list[float], label: str, colour: str, form: str, above: bool) -> None:
    """Values over the prompt lengths, each with its number."""
    places = range(len(PROMPTS))
    axes.plot(places, values, marker="o", markersize=4, color=colour, linewidth=1.8, clip_on=False)
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            form.format(value),
            (place, value),
            xytext=(0, 6 if above else -14),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=colour,
        )
    axes.annotate(
        label,
        (len(PROMPTS) - 1, values[-1]),
        xytext=(12, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        color=colour,
    )


def finish(axes: Axes, title: str, top: float) -> None:
    """Axis of prompt lengths, no frame."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xticks(range(len(PROMPTS)), [f"{prompt // 1024}K" for prompt in PROMPTS], fontsize=8.5)
    axes.set_xlabel("tokens of the prompt", fontsize=8.5)
    axes.set_yticks([])
    axes.set_ylim(0, top)
    axes.set_xlim(-0.3, 3.9)
    axes.spines["left"].set_visible(False)
    plain(axes)


def draw() -> Figure:
    """Speed over padded rows on the left, peak memory on the right."""
    speed = measured()["speed"]
    figure = Figure(figsize=(10, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (label, lengths), colour, above in zip(
        ANSWERS.items(), (REJECTED, PROMPT), (False, True), strict=True
    ):
        line(
            left,
            [speed[f"{prompt} + {lengths}"]["ratio"][0] for prompt in PROMPTS],
            label,
            colour,
            "{:.2f} ×",
            above,
        )
    left.axhline(1, color=GREY, linewidth=1, linestyle="--")
    left.annotate(
        "padded rows", (3, 1), xytext=(12, -11), textcoords="offset points", fontsize=8.5, color=GREY
    )
    finish(left, "tokens a second over padded rows, 1.5B model, one H100", 2.8)
    for who, label, colour, above in (("padded", "padded", GREY, True), ("ours", "here", CHOSEN, False)):
        peaks = [speed[f"{prompt} + {ANSWERS['1 + 2 answers']}"][who]["peak_gib"] for prompt in PROMPTS]
        line(right, peaks, label, colour, "{:.0f}", above)
    finish(right, "peak memory of the GPU, GiB, 1 + 2 answers", 52)
    return figure
