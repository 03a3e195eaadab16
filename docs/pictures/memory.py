"""Activation memory of a step by memory lever, prompt length and degree (benchmarks/results/scaling.json)."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.pictures.style import CHOSEN, GREY, PROMPT, REJECTED, plain
from docs.tables import scaling_cell as cell

LEVERS = {
    "padded": "padded rows, the library's forward",
    "keep_attention": "checkpointing=keep_attention",
    "full": "checkpointing=full",
    "tiled": "full, mlp_chunk=512",
    "tiled_disk": "full, mlp_chunk=512, offload=disk",
}


def bars(axes: Axes, title: str, rows: list[tuple[str, dict[str, Any], str]]) -> None:
    """One horizontal bar a cell, with its gigabytes."""
    labels = [label for label, _, _ in rows]
    values = [found["activation_bytes"] / 1e9 for _, found, _ in rows]
    drawn = axes.barh(range(len(rows)), values, color=[colour for *_, colour in rows], height=0.7)
    axes.bar_label(drawn, [f"{value:.2f} GB" for value in values], fontsize=8.5, padding=3)
    axes.set_yticks(range(len(rows)), labels, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10)
    axes.margins(x=0.18)
    plain(axes)


def draw() -> Figure:
    """Levers on the left, degrees on the right."""
    figure = Figure(figsize=(10.5, 2.9), layout="constrained")
    levers, degrees = figure.subplots(1, 2, width_ratios=(1.1, 1))
    rows = [(LEVERS["padded"] + " (3416)", cell("padded", 3416), GREY)]
    for lever in ("keep_attention", "full", "tiled", "tiled_disk"):
        rows.append((LEVERS[lever], cell(lever, 4096), PROMPT))
    rows.append((LEVERS["tiled_disk"] + " (20480)", cell("tiled_disk", 20480), CHOSEN))
    bars(levers, "levers, 4096 prompt tokens where not said", rows)
    shared = [("one process", cell("keep_attention", 8192), PROMPT)]
    for kind in ("ulysses", "gather"):
        for degree in (2, 4):
            shared.append((f"{kind}, degree {degree}", cell("keep_attention", 8192, kind, degree), REJECTED))
    bars(degrees, "one of the processes, 8192 prompt tokens", shared)
    return figure
