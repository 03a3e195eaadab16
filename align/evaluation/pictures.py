"""Pictures that suites share: a heat map over two axes, and curves with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from align.evaluation.intervals import Interval


def heat_map(
    table: Mapping[tuple[str, str], float],
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    labels: tuple[str, str],
    title: str,
) -> Figure:
    """Values from 0 (red) to 1 (green), each also written in its cell; cells without a value stay grey.

    Args:
        table: `(column, row)` → value.
        columns: along the x axis, in order.
        rows: along the y axis, from the top.
        labels: names of the x and the y axis.
        title: above.
    """
    from matplotlib.figure import Figure

    values = np.array([[table.get((column, row), np.nan) for column in columns] for row in rows])
    figure = Figure(figsize=(1.4 + 0.9 * len(columns), 1.4 + 0.55 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#dddddd")
    image = axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        if not np.isnan(value):
            axes.text(x, y, f"{value:.0%}", ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, loc="left", fontsize=11)
    figure.colorbar(image, ax=axes, fraction=0.04)
    return figure


def curve(
    points: Mapping[float, Interval],
    *,
    labels: tuple[str, str],
    title: str,
    diagonal: bool = False,
    logarithmic: bool = False,
) -> Figure:
    """Means over a quantity with their intervals as a band; optionally the line y = x, or logarithmic axes.

    Where a mean has no interval the band has a gap.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    places = sorted(points)
    means = [points[place].mean for place in places]
    low, high = ([_number(getattr(points[place], end)) for place in places] for end in ("low", "high"))
    if diagonal:
        axes.plot(places, places, color="#999999", linestyle="--", linewidth=1, label="as required")
    axes.fill_between(places, low, high, color="#9db4c8", alpha=0.5, label="95% interval")
    axes.plot(places, means, "o-", color="#1f5a92", label="mean")
    if logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
