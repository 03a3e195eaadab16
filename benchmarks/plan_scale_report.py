"""The simulated grid as tables and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

MARKS = (
    "~: rests on a rate that is assumed, such as the network's; without it on measured rates and counted work alone. "
    "GB are the planner's formulas with 1.5 GB of libraries, which is assumed. Seconds: as if nothing overlapped, then "
    "with what can, then the share of these in which the GPU waits for the network."
)
COLOURS = {"ulysses": "#4477aa", "gather": "#ee6677", "mixed": "#228833"}
WAYS = {
    "one_for_all": "one for all",
    "one_a_batch": "one a batch",
    "many_a_batch": "many a batch",
    "bound": "bound",
}


def thousands(tokens: int) -> str:
    """32768 → `32K`."""
    return f"{tokens // 1024}K" if tokens < 2**20 else f"{tokens // 2**20}M"


def table(cells: list[dict[str, Any]], gpus: int) -> Table:
    """One cluster: lengths down, exchanges across."""
    made = Table(
        title=f"{gpus} GPUs: degree, seconds a prompt apart and overlapped, waiting, GB a GPU, GB sent a row and GPU",
        title_justify="left",
    )
    made.add_column("tokens", justify="right")
    here = [cell for cell in cells if cell["gpus"] == gpus]
    exchanges = list(dict.fromkeys(cell["exchange"] for cell in here))
    for exchange in exchanges:
        made.add_column(exchange, justify="right")
    for length in sorted({cell["length"] for cell in here}):
        row = {cell["exchange"]: cell for cell in here if cell["length"] == length}
        made.add_row(thousands(length), *(_text(row[exchange]) for exchange in exchanges))
    return made


def _text(cell: dict[str, Any]) -> str:
    if not cell["fits"]:
        return "does not fit"
    degree = str(cell["degree"])
    if cell["exchange"] == "mixed" and cell["degree"] > 1:
        degree = f"{cell['inner']}×{cell['degree'] // cell['inner']}"
    seconds, sent = cell["seconds_per_prompt"], cell["exchange_gb_per_row"]
    both = f"{mark(cell)}{seconds:.3g} {mark(cell)}{cell['overlapped_seconds_per_prompt']:.3g} s"
    return f"{degree}  {both}  {percent(cell['exposed_share'])}  {cell['memory_gb']:.0f} GB  {sent:.3g} GB"


def percent(share: float) -> str:
    """0.125 → `12 %`."""
    return f"{100 * share:.0f} %"


def mark(cell: dict[str, Any]) -> str:
    """`~` where seconds rest on something that is assumed."""
    return "~" if cell["assumed"] else ""


def grown_table(cells: list[dict[str, Any]]) -> Table:
    """One job on more and more GPUs: an 8B with LoRA, against as many times one GPU's speed."""
    made = Table(title=f"an 8B with LoRA, rows of {cells[0]['length']} tokens, DDP", title_justify="left")
    for heading in GROWN_HEADINGS:
        made.add_column(heading, justify="right")
    for row in grown_rows(cells):
        made.add_row(*row)
    return made


GROWN_HEADINGS = (
    "GPUs",
    "degree",
    "seconds a prompt, nothing overlapped",
    "with overlap",
    "GPU waits",
    "of ideal speed",
    "rests on what is assumed",
)


def grown_rows(cells: list[dict[str, Any]]) -> list[list[str]]:
    """A row a cluster; ideal is the speed of the first one times as many GPUs."""
    first = next(cell for cell in cells if cell["fits"])
    ideal = first["overlapped_seconds_per_prompt"] * first["gpus"]
    rows = []
    for cell in cells:
        if not cell["fits"]:
            rows.append([str(cell["gpus"]), *["does not fit"] * (len(GROWN_HEADINGS) - 1)])
            continue
        degree = str(cell["degree"]) if cell["degree"] == 1 else f"{cell['degree']} ({cell['exchange']})"
        seconds = cell["overlapped_seconds_per_prompt"]
        numbers = [f"{cell['seconds_per_prompt']:.3g}", f"{seconds:.3g}", percent(cell["exposed_share"])]
        numbers.append(percent(ideal / cell["gpus"] / seconds))
        marked = [f"{mark(cell)}{number}" for number in numbers]
        rows.append([str(cell["gpus"]), degree, *marked, ", ".join(cell["assumed"]) or "nothing"])
    return rows


def by_degree_table(cells: list[dict[str, Any]]) -> Table:
    """One length on one cluster: degrees down, exchanges across."""
    length, gpus = thousands(cells[0]["length"]), cells[0]["gpus"]
    title = f"{length} tokens on {gpus} GPUs by degree, ZeRO-3, default levers (in brackets: does not fit)"
    made = Table(title=title, title_justify="left")
    made.add_column("degree", justify="right")
    exchanges = list(dict.fromkeys(cell["exchange"] for cell in cells))
    for exchange in exchanges:
        made.add_column(exchange, justify="right")
    for degree in sorted({cell["degree"] for cell in cells}):
        row = {cell["exchange"]: cell for cell in cells if cell["degree"] == degree}
        texts = [_text(row[one] | {"fits": True}) if one in row else "" for one in exchanges]
        fits = [one not in row or row[one]["fits"] for one in exchanges]
        made.add_row(
            str(degree), *(text if ok else f"({text})" for text, ok in zip(texts, fits, strict=True))
        )
    return made


def degrees_table(found: list[dict[str, Any]]) -> Table:
    """One degree against several, seconds a step and over the best."""
    made = Table(
        title="one degree for all rows, against degrees that follow the lengths: seconds a step",
        title_justify="left",
    )
    for heading in ("cluster", "median", "longest", "degree", *WAYS.values(), "all : many"):
        made.add_column(heading, justify="right")
    for one in found:
        made.add_row(
            one["cluster"],
            f"{one['median']}",
            f"{one['longest']}",
            str(one["degree"]),
            *(f"{one[way]:.3g}" for way in WAYS),
            f"{one['one_for_all'] / one['many_a_batch']:.2f} ×",
        )
    return made


def draw(results: dict[str, Any], path: Path) -> None:
    """Seconds a prompt by length; memory and GB sent by degree; one degree against several."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8))
    _draw_seconds(results["cells"], axes[0, 0])
    by_degree = results["by_degree"]
    length, gpus = thousands(by_degree[0]["length"]), by_degree[0]["gpus"]
    for axis, key, label in (
        (axes[0, 1], "exchange_gb_per_row", "GB that a GPU sends"),
        (axes[1, 0], "memory_gb", "GB a GPU"),
    ):
        for exchange, colour in COLOURS.items():
            line = [cell for cell in by_degree if cell["exchange"] == exchange]
            points = [cell["degree"] for cell in line], [cell[key] for cell in line]
            axis.plot(*points, color=colour, marker="o", markersize=3, label=exchange)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xlabel(f"degree, {length} tokens, {gpus} GPUs")
        axis.set_ylabel(label)
    axes[0, 1].legend(fontsize=7)
    axes[1, 0].axhline(80, color="grey", linewidth=0.8)
    _draw_degrees(results.get("degrees", []), axes[1, 1])
    figure.suptitle(
        f"{results['model']} on H100, all parameters (last panel: LoRA): simulated from one GPU's rates"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _draw_seconds(cells: list[dict[str, Any]], axis: Any) -> None:
    for exchange, colour in COLOURS.items():
        for gpus in sorted({cell["gpus"] for cell in cells}):
            line = [c for c in cells if c["gpus"] == gpus and c["exchange"] == exchange and c["fits"]]
            points = [c["length"] for c in line], [c["seconds_per_prompt"] for c in line]
            axis.plot(*points, color=colour, marker="o", markersize=3)
            if line and exchange == "mixed":
                axis.annotate(f"{gpus} GPUs", (points[0][0], points[1][0]), fontsize=7, va="bottom")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("tokens of a row")
    axis.set_ylabel("seconds a prompt, the fastest that fits")


def _draw_degrees(found: list[dict[str, Any]], axis: Any) -> None:
    width = 0.2
    for offset, (way, label) in enumerate(WAYS.items()):
        heights = [one[way] / one["many_a_batch"] for one in found]
        axis.bar([i + offset * width for i in range(len(found))], heights, width, label=label)
    axis.set_xticks([i + 1.5 * width for i in range(len(found))])
    axis.set_xticklabels(
        [f"{one['cluster'].split(',')[0].split('× ')[1]}\nto {one['longest'] // 1000}k" for one in found],
        fontsize=8,
    )
    axis.set_ylabel("seconds a step, over many degrees a batch")
    axis.legend(fontsize=7)
