"""One sentence a stage, for the table, README and the documentation. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.table import Table

from benchmarks.gpu.results import FOLDER, STAGES, Entry, newest

NOT_RUN = "not run"
RIVALS = {"trl": "DPOTrainer", "trl_fastest": "DPOTrainer at its fastest", "padded": "padded rows"}
CHECKED = ("kernels", "step")  # stages of checks: an error in one of their cells is one that has not passed


def sentence(stage: str, entry: Entry) -> str:
    """What a stage found: `158 of 160 cases within their bounds; …`; why it found nothing, where it did not."""
    if "skipped" in entry:
        return str(entry["skipped"])
    if "error" in entry:
        return f"ended in an error: {entry['error'].splitlines()[-1]}"
    said = "; ".join(_SENTENCES[stage](entry["result"])) or "no time left"
    return f"{said}; unfinished" if "unfinished" in entry else said


def failures(stage: str, entry: Entry) -> list[str]:
    """What did not go as it has to: the stage itself, where an error ended it, and checks that have not passed."""
    ended = [stage] if "error" in entry else []
    return ended + (_failed(entry["result"]) if stage in CHECKED else [])


def _failed(result: Mapping[str, Any]) -> list[str]:
    return [
        name for name, cell in _findings(result).items() if "error" in cell or cell.get("passed") is False
    ]


def line(stage: str, folder: Any = FOLDER) -> str:
    """`NVIDIA H100 80GB HBM3, 2026-12-01, commit abc1234: …` of the newest result, or `not run`."""
    found = newest(stage, folder)
    if found is None:
        return NOT_RUN
    card, entry = found
    return f"{card}, {entry['date']}, commit `{entry['commit']}`: {sentence(stage, entry)}"


def lines(folder: Any = FOLDER) -> dict[str, str]:
    """`line` of every stage."""
    return {stage: line(stage, folder) for stage in STAGES}


def table(card: str, entries: Mapping[str, Entry]) -> Table:
    """The stages of one run."""
    made = Table(title=card, title_justify="left")
    for heading in ("stage", "", "seconds", "found"):
        made.add_column(heading, justify="right" if heading == "seconds" else "left")
    for stage, entry in entries.items():
        state = "failed" if failures(stage, entry) else "skipped" if "skipped" in entry else "done"
        made.add_row(stage, state, f"{entry['seconds']:.0f}", sentence(stage, entry))
    return made


def _findings(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What cells kept, errors among it; not what is a number or a sentence."""
    return {name: cell for name, cell in result.items() if isinstance(cell, Mapping)}


def _cells(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The same without cells that ended in an error."""
    return {name: cell for name, cell in _findings(result).items() if not isinstance(cell.get("error"), str)}


def _environment(result: Mapping[str, Any]) -> Iterator[str]:
    if "tflops" in _cells(result):
        yield ", ".join(f"{name} {value:.3g} TFLOP/s" for name, value in result["tflops"].items())
    if "gb_per_s" in _cells(result):
        yield ", ".join(f"{name} {value:.3g} GB/s" for name, value in result["gb_per_s"].items())


def _kernels(result: Mapping[str, Any]) -> Iterator[str]:
    cells = {name: cell for name, cell in _cells(result).items() if "worst" in cell}
    suites = [cell for cell in cells.values() if "failed" in cell]
    if suites:
        passed = sum(cell["within"] for cell in suites)
        tried = passed + sum(len(cell["failed"]) + len(cell["refused"]) for cell in suites)
        left = sum(cell["left_out"] for cell in suites)
        yield f"{passed} of {tried} cases within their bounds" + (
            f", {left} had no time left" if left else ""
        )
    for name, cell in cells.items():
        yield f"{name} {max(cell['worst'].values()):.1e}"


def _step(result: Mapping[str, Any]) -> Iterator[str]:
    checks = [name for name, cell in _findings(result).items() if cell.keys() & {"passed", "error"}]
    if checks:
        failed = _failed(result)
        but = f" (not: {', '.join(failed)})" if failed else ""
        yield f"{len(checks) - len(failed)} of {len(checks)} checks passed{but}"
    cells = {name: cell for name, cell in _cells(result).items() if name != "bounds"}
    exact = [cell["fp32"]["gradient"] for cell in cells.values() if "loss" in cell.get("fp32", {})]
    if exact:
        yield f"worst gradient error in fp32 {max(exact):.1e} over {len(exact)} architectures"
    waits = cells.get("synchronisations", {})
    if "a micro-batch" in waits:
        yield f"{waits['a micro-batch']} synchronisations a micro-batch"
    counts = cells.get("tests marked gpu", {}).get("counts")
    if counts:
        yield f"tests marked gpu: {', '.join(f'{count} {word}' for word, count in counts.items())}"


def ratios(cells: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of every rival that was measured beside the shared prefix: its seconds over ours, and our memory over its own."""
    made = {}
    for name, rival in cells.items():
        job, _, contestant = name.rpartition(", ")
        ours = cells.get(f"{job}, shared")
        if contestant not in RIVALS or not _measured(rival) or not _measured(ours):
            continue
        made[name] = {"speed": rival["seconds"] / ours["seconds"]}
        if rival["peak_gib"]:
            made[name]["memory"] = ours["peak_gib"] / rival["peak_gib"]
    return made


def _measured(cell: Any) -> bool:
    return isinstance(cell, dict) and "tokens_per_s" in cell


def _speed(result: Mapping[str, Any]) -> Iterator[str]:
    found = ratios(result)
    for rival, named in RIVALS.items():
        own = [ratio for name, ratio in found.items() if name.endswith(f", {rival}")]
        if own:
            memory = [ratio["memory"] for ratio in own if "memory" in ratio]
            less = f", {_range(memory)} × the memory" if memory else ""
            yield f"against {named} {_range([ratio['speed'] for ratio in own])} × as fast{less} ({len(own)} jobs)"
    shares = [
        cell["mfu"] for name, cell in _cells(result).items() if name.endswith("shared") and "mfu" in cell
    ]
    if shares:
        yield f"up to {100 * max(shares):.2g} % of the matrix rate"


def _range(values: list[float]) -> str:
    low, high = (f"{edge(values):.2f}" for edge in (min, max))
    return low if low == high else f"{low} to {high}"


def longest(cell: Mapping[str, Any]) -> str:
    """The longest prompt of a cell of stage `length`; `or more` where time ended the search."""
    return f"{cell['longest']:,}" if cell["over"] else f"{cell['longest']:,} or more"


def _length(result: Mapping[str, Any]) -> Iterator[str]:
    for name, cell in _cells(result).items():
        if cell.get("longest"):
            found = f"{name}: {longest(cell)} tokens"
            layers = str(cell["at"]["layers"])
            few = f", from {layers} layers" if " of " in layers else ""
            yield f"{found} (planned {cell['planned']:,}{few})"


def _planner(result: Mapping[str, Any]) -> Iterator[str]:
    cells = [cell["error"] for cell in _cells(result).values() if isinstance(cell.get("error"), Mapping)]
    for what in ("memory", "time"):
        errors = [cell[what] for cell in cells if cell[what] is not None]
        if errors:
            yield f"{what} {100 * min(errors):+.0f} % to {100 * max(errors):+.0f} % over {len(errors)} configurations"


def _miniature(result: Mapping[str, Any]) -> Iterator[str]:
    for name, found in _cells(result).items():
        if "low" in found:
            yield f"{name}: {100 * found['mean']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


_SENTENCES: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "environment": _environment,
    "kernels": _kernels,
    "step": _step,
    "speed": _speed,
    "length": _length,
    "planner": _planner,
    "miniature": _miniature,
}
