"""Runs the missing cells of the miniature, one after the other, and says what the finished ones show.

    python -m benchmarks.miniature                          # all of them; ALIGN_DATA: see docs/data-for-experiments.md
    python -m benchmarks.miniature --list                   # what there is, and what is done
    python -m benchmarks.miniature --cells find write/dpo   # cells whose names begin like this, and what they need
    python -m benchmarks.miniature --budget-minutes 60      # starts no cell after an hour
    python -m benchmarks.miniature --report                 # only the table, the claims and the pictures
    python -m benchmarks.miniature --groups 42 --seeds 1 2 3 4 --work W --results R     # more than the protocol has

Each step of a cell is a process of its own. A cell's JSON is written when all its steps are done; a killed one goes
on where it stopped when the command is given again. Several of these commands may run at once: they share the cells.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from align.core.files import write_atomically
from benchmarks.miniature.analysis import read_results
from benchmarks.miniature.cells import SEEDS, Cell, Place, grid
from benchmarks.miniature.questions import GROUPS
from benchmarks.miniature.report import draw, show
from benchmarks.miniature.run import ROOT, claimed, result_path, run_cell

RESULTS = ROOT / "benchmarks" / "results" / "miniature"


def main() -> None:
    """Cells, then the report."""
    arguments = parse(sys.argv[1:])
    if arguments.dev:
        arguments.work, arguments.results = arguments.work / "dev", arguments.work / "dev" / "results"
    cells = grid((0,) if arguments.dev else arguments.seeds)
    if arguments.list:
        list_cells(cells, arguments.results)
        return
    if not arguments.report:
        split = "dev" if arguments.dev else "held_out"
        place = Place(arguments.work.resolve(), data_folder(), split, arguments.groups)
        run_missing(wanted(cells, arguments.cells), place, arguments)
    results = read_results(arguments.results)
    console = Console(width=120, record=True)
    show(results, console)
    if results:
        write_atomically(arguments.results / "report.txt", console.export_text())
        draw(results, arguments.results)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = cells_parser("miniature", __doc__, results=RESULTS)
    parser.add_argument("--groups", type=int, default=GROUPS, help="of 24 held-out questions of part qa")
    return parser.parse_args(words)


def cells_parser(name: str, description: str | None, *, results: Path) -> argparse.ArgumentParser:
    """What the command of every grid of cells takes.

    Args:
        name: of the benchmark, below `benchmarks` and `outputs`.
        description: its module's.
        results: where its finished cells lie, unless it is told.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cells", nargs="+", default=[""], metavar="NAME", help="beginnings of cells' names")
    parser.add_argument("--list", action="store_true", help="list the cells and end")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="start no cell after this")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each process")
    parser.add_argument("--dev", action="store_true", help="seed 0 and the development questions, apart")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="other ones than the protocol's")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / name, help="runs and models")
    parser.add_argument("--results", type=Path, default=results, help="finished cells")
    return parser


def data_folder() -> Path:
    """`ALIGN_DATA`, or an end with a sentence."""
    if "ALIGN_DATA" not in os.environ:
        sys.exit("ALIGN_DATA is not set: docs/data-for-experiments.md says what lies there.")
    return Path(os.environ["ALIGN_DATA"]).resolve()


def wanted(cells: Sequence[Cell], beginnings: Sequence[str]) -> list[Cell]:
    """The cells named, and those that they need, in the order of the grid."""
    by_id = {cell.id: cell for cell in cells}
    named = {cell.id for cell in cells if any(cell.id.startswith(word) for word in beginnings)}
    if not named:
        sys.exit(f"no cell begins with {' or '.join(beginnings)}: --list shows them all.")
    missing = list(named)
    while missing:
        needed = set(by_id[missing.pop()].needs) - named
        named |= needed
        missing += needed
    return [cell for cell in cells if cell.id in named]


def run_missing(cells: Sequence[Cell], place: Place, arguments: argparse.Namespace) -> None:
    """Runs each cell that has no JSON; one that fails ends neither the others nor the report."""
    console, start = Console(stderr=True), time.monotonic()
    took: dict[str, list[float]] = {}
    for number, cell in enumerate(cells, start=1):
        if result_path(arguments.results, cell).is_file():
            continue
        if time.monotonic() - start > 60 * arguments.budget_minutes:
            console.print(
                f"{arguments.budget_minutes:g} minutes are over: {cell.id} and later cells stay open"
            )
            return
        if not all(result_path(arguments.results, c).is_file() for c in by_need(cells, cell)):
            console.print(f"{cell.id}: waits for {', '.join(cell.needs)}")
            continue
        with claimed(place.folder(cell.id)) as lock:
            if lock is None or result_path(arguments.results, cell).is_file():
                console.print(f"{cell.id}: another process {'runs' if lock is None else 'has done'} it")
                continue
            began = time.monotonic()
            try:
                run_cell(cell, place, arguments.results, threads=arguments.threads, lock=lock)
            except RuntimeError as error:
                console.print(f"[red]{error}", highlight=False, soft_wrap=True)
                continue
            seconds = time.monotonic() - began
            took.setdefault(cell.part, []).append(seconds)
            missing = [one for one in cells[number:] if not result_path(arguments.results, one).is_file()]
            left = f"{len(missing)} cells left, {time_left(missing, took)}" if missing else "no cell left"
            console.print(f"{cell.id}: done in {seconds:.0f} s; {left}", highlight=False, soft_wrap=True)


def time_left(cells: Sequence[Cell], took: Mapping[str, Sequence[float]]) -> str:
    """`about 12 minutes`, from the mean of the cells of each part that this call has run; says where none was."""
    known = [cell for cell in cells if cell.part in took]
    seconds = sum(sum(took[cell.part]) / len(took[cell.part]) for cell in known)
    about = f"about {max(1, round(seconds / 60))} minutes"
    unknown = sorted({cell.part for cell in cells if cell.part not in took})
    return f"{about} without part {' and '.join(unknown)}" if unknown else about


def by_need(cells: Sequence[Cell], cell: Cell) -> list[Cell]:
    """The cells that `cell` needs."""
    return [other for other in cells if other.id in cell.needs]


def list_cells(cells: Sequence[Cell], results: Path) -> None:
    """Every cell with its state."""
    for cell in cells:
        state = "done" if result_path(results, cell).is_file() else "open"
        needs = f"  needs {', '.join(cell.needs)}" if cell.needs else ""
        print(f"{state}  {cell.id}{needs}")


if __name__ == "__main__":
    main()
