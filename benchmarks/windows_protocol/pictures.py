"""Pictures of a setting: accuracy by length and depth, a heat map an arm; perplexity by position, a line an arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.windows_protocol.arms import ARMS, DEPTHS, SETTINGS, Arm
from benchmarks.windows_protocol.data import condition
from benchmarks.windows_protocol.questions import Results
from benchmarks.windows_protocol.report import TITLES, perplexity, values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 6  # heat maps side by side


def draw(results: Results, folder: Path) -> list[Path]:
    """`PART_depth.png` and `PART_positions.png` for each setting that has cells."""
    paths = []
    for part in TITLES:
        for name, figure in (("depth", heat_maps(results, part)), ("positions", curves(results, part))):
            if figure is not None:
                folder.mkdir(parents=True, exist_ok=True)
                paths.append(folder / f"{part}_{name}.png")
                figure.savefig(paths[-1], dpi=130)
    return paths


def grid_of(results: Results, part: str, name: str) -> np.ndarray | None:
    """`[depths, lengths]` accuracies of an arm, means over questions and seeds; None where no cell is finished."""
    lengths = SETTINGS[part].lengths
    found = [
        [values(results, part, name, (condition(length, depth),)) for length in lengths] for depth in DEPTHS
    ]
    if found[0][0] is None:
        return None
    return np.array([[np.mean(cell) for cell in row if cell is not None] for row in found])


def heat_maps(results: Results, part: str) -> Figure | None:
    """One map an arm, depth downwards, from 0 (red) to 1 (green); None without any cell."""
    from matplotlib.figure import Figure

    grids = {name: grid for name in ARMS[part] if (grid := grid_of(results, part, name)) is not None}
    if not grids:
        return None
    lines = math.ceil(len(grids) / COLUMNS)
    figure = Figure(figsize=(2.1 * COLUMNS, 0.5 + 1.9 * lines), layout="constrained")
    panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for axes in panels[len(grids) :]:
        axes.set_axis_off()
    for number, (axes, (name, grid)) in enumerate(zip(panels, grids.items(), strict=False)):
        axes.imshow(grid, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
        for (y, x), value in np.ndenumerate(grid):
            axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=6)
        axes.set_title(name, loc="left", fontsize=8)
        axes.set_xticks(range(grid.shape[1]), [str(length) for length in SETTINGS[part].lengths], fontsize=6)
        first = number % COLUMNS == 0
        axes.set_yticks(range(len(DEPTHS)), [f"{depth:g}" if first else "" for depth in DEPTHS], fontsize=6)
    figure.suptitle(f"{TITLES[part]}: found, %, by tokens (→) and depth (↓)", x=0, ha="left", fontsize=10)
    return figure


def kinds(part: str) -> Mapping[str, list[str]]:
    """The arms of each panel of curves."""
    titles = {
        None: "nothing trained",
        "short": "short rows",
        "long": "long rows",
        "plain": "text",
        "knots": "text",
    }

    def title(name: str, arm: Arm) -> str:
        pattern = any(word.startswith("attention=") for word in (*arm.train, *arm.read))
        return "patterns" if pattern else titles[(ARMS[part][arm.of] if arm.rows is None else arm).rows]

    found: dict[str, list[str]] = {}
    for name, arm in ARMS[part].items():
        found.setdefault(title(name, arm), []).append(name)
    return found


def curves(results: Results, part: str) -> Figure | None:
    """Perplexity by position, a panel for each kind of arm, the base model in all; None without any cell."""
    from matplotlib.figure import Figure

    lines = {name: line for name in ARMS[part] if (line := _line(results, part, name))}
    panels: dict[str, list[str]] = {}
    for title, names in kinds(part).items():
        own = [name for name in names if name in lines]
        if own:
            panels[title] = [name for name in dict.fromkeys(("base", *own)) if name in lines]
    if not panels:
        return None
    figure = Figure(figsize=(3.4 * len(panels), 3.4), layout="constrained")
    edges = SETTINGS[part].edges
    for axes, (title, names) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True).ravel(), panels.items(), strict=True
    ):
        for name in names:
            style = {"color": "#444444", "linestyle": "--"} if name == "base" else {"linestyle": "-"}
            axes.plot(
                range(len(edges)), lines[name], marker="o", markersize=3, linewidth=1, label=name, **style
            )
        axes.set_xticks(range(len(edges)), [str(edge) for edge in edges])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel("position, from")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=6)
    figure.suptitle(f"{TITLES[part]}: perplexity", x=0, ha="left", fontsize=10)
    return figure


def _line(results: Results, part: str, name: str) -> Sequence[float]:
    found = [perplexity(results, part, name, edge) for edge in SETTINGS[part].edges]
    return [interval.mean for interval in found if interval is not None]
