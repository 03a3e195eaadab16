"""The gradient table as text, as JSON, as a heat map and as the documentation's block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import log10, nan
from pathlib import Path
from typing import Any

from rich.table import Table

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- parity: begin -->", "<!-- parity: end -->"
LABELS = {
    "none": "none",
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    "zero1": "ZeRO-1",
    "zero2": "ZeRO-2",
    "zero3": "ZeRO-3",
}
# What the requirement bounds by 1e-5; `update` is kept in the JSON file.
BOUNDED = ("loss", "gradient", "weights")

Cell = Mapping[str, Any]


def exceeds(cell: Cell, tolerances: Mapping[str, float]) -> bool:
    """Whether a computed cell is above a tolerance (NaN is); a library's refusal is not an error of ours."""
    return "error" not in cell and not all(cell[what] <= bound for what, bound in tolerances.items())


def worst(cell: Cell) -> float:
    """The largest relative error of loss, gradients and weights; NaN where there is none."""
    return nan if "error" in cell else max(cell[what] for what in BOUNDED)


def axes(results: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Rows `(wrapper, what trains)` and columns `(exchange, layout)` of the cells, in the order of the labels."""
    split = [name.split("/") for name in results["cells"]]
    order = list(LABELS)
    rows = sorted({(wrapper, p) for _, _, wrapper, p in split}, key=lambda row: (order.index(row[0]), row[1]))
    columns = sorted(
        {(kind, layout) for kind, layout, _, _ in split}, key=lambda c: (c[0] == "gather", len(c[1]), c[1])
    )
    return rows, columns


def grid(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of text: the worst error of each cell, `fails` where a library refuses."""
    rows, columns = axes(results)
    headings = ["wrapper", "trains", *(f"{kind} {layout.replace('x', ' × ')}" for kind, layout in columns)]
    lines = []
    for wrapper, parameters in rows:
        cells = [results["cells"].get(f"{kind}/{layout}/{wrapper}/{parameters}") for kind, layout in columns]
        lines.append([LABELS[wrapper], parameters, *(_text(cell) for cell in cells)])
    return headings, lines


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return "fails" if "error" in cell else f"{worst(cell):.0e}".replace("e-0", "e-")


def refusals(results: Mapping[str, Any]) -> list[str]:
    """Each cell that a library could not do, with its message."""
    return [f"{name}: {cell['error']}" for name, cell in sorted(results["cells"].items()) if "error" in cell]


def table(results: Mapping[str, Any]) -> Table:
    """One line a wrapper and what trains."""
    headings, lines = grid(results)
    shown = Table(title="Worst relative error of loss, gradients and weights", title_justify="left")
    for heading in headings:
        shown.add_column(heading)
    for line in lines:
        shown.add_row(*line)
    for refusal in refusals(results):
        shown.caption = f"{shown.caption or ''}{refusal}\n"
    return shown


def write(results: Mapping[str, Any], folder: Path) -> None:
    """`parity.json` and `parity.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "parity.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    draw(results, folder / "parity.png")


def write_page(results: Mapping[str, Any], path: Path) -> None:
    """Puts the table between the page's markers."""
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n{markdown(results)}{END}{after}")


def markdown(results: Mapping[str, Any]) -> str:
    """The table in Markdown, with the largest figures of all and what libraries refused."""
    headings, lines = grid(results)
    done = [cell for cell in results["cells"].values() if "error" not in cell]
    largest = ", ".join(f"{what} {max(cell[what] for cell in done):.1e}" for what in BOUNDED)
    text = [
        f"{len(done)} of {len(results['cells'])} combinations; the largest errors of all: {largest}.",
        "",
        "| " + " | ".join(headings) + " |",
        "|" + "---|" * len(headings),
        *("| " + " | ".join(line) + " |" for line in lines),
    ]
    text += [f"\n`{refusal}`" for refusal in refusals(results)]
    return "\n".join(text) + "\n"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """A heat map of the worst errors: powers of ten below the tolerance of 1e-5."""
    from matplotlib.figure import Figure

    rows, columns = axes(results)
    values = [
        [
            log10(max(worst(results["cells"].get(f"{kind}/{layout}/{wrapper}/{p}", {"error": ""})), 1e-12))
            for kind, layout in columns
        ]
        for wrapper, p in rows
    ]
    headings, lines = grid(results)
    figure = Figure(figsize=(1.6 + 0.95 * len(columns), 1.2 + 0.34 * len(rows)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, cmap="RdYlGn_r", vmin=-8, vmax=-4, aspect="auto")
    for i, line in enumerate(lines):
        for j, text in enumerate(line[2:]):
            axis.text(j, i, text, ha="center", va="center", fontsize=7)
    axis.set_xticks(
        range(len(columns)), [heading.replace(" ", "\n", 1) for heading in headings[2:]], fontsize=8
    )
    axis.set_yticks(range(len(rows)), [f"{line[0]}, {line[1]}" for line in lines], fontsize=8)
    figure.colorbar(image, ax=axis, label="log₁₀ of the relative error; required: below −5")
    figure.savefig(path, dpi=120)
