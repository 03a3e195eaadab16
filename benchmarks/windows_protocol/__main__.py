"""Runs the missing cells of the protocol, one after the other, and says what the finished ones show.

    python -m benchmarks.windows_protocol --cells find           # the models of 0.12M parameters
    python -m benchmarks.windows_protocol                        # SmolLM2 too: about four hours of one core more
    python -m benchmarks.windows_protocol --list                 # what there is, and what is done
    python -m benchmarks.windows_protocol --cells find/e2 smollm2/base    # beginnings of names, and what they need
    python -m benchmarks.windows_protocol --budget-minutes 60    # starts no cell after an hour
    python -m benchmarks.windows_protocol --report               # only the tables and the pictures

Each step of a cell is a process of its own. A cell's JSON is written when all its steps are done; a killed one goes
on where it stopped when the command is given again. Several of these commands may run at once: they share the cells.
"""

from __future__ import annotations

from rich.console import Console

from align.core.files import write_atomically
from benchmarks.miniature.__main__ import cells_parser, list_cells, run_missing, wanted
from benchmarks.miniature.analysis import read_results
from benchmarks.miniature.cells import Place
from benchmarks.miniature.run import ROOT
from benchmarks.windows_protocol.cells import grid
from benchmarks.windows_protocol.pictures import draw
from benchmarks.windows_protocol.report import show

RESULTS = ROOT / "benchmarks" / "results" / "windows_protocol"


def main() -> None:
    """Cells, then the report."""
    arguments = cells_parser("windows_protocol", __doc__, results=RESULTS).parse_args()
    if arguments.dev:
        arguments.work, arguments.results = arguments.work / "dev", arguments.work / "dev" / "results"
    cells = grid((0,) if arguments.dev else arguments.seeds)
    if arguments.list:
        list_cells(cells, arguments.results)
        return
    if not arguments.report:
        work = arguments.work.resolve()
        place = Place(work, work, "dev" if arguments.dev else "held_out")
        run_missing(wanted(cells, arguments.cells), place, arguments)
    results = read_results(arguments.results)
    console = Console(width=160, record=True)
    show(results, console)
    if results:
        write_atomically(arguments.results / "report.txt", console.export_text())
        draw(results, arguments.results)


if __name__ == "__main__":
    main()
