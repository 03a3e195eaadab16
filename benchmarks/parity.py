"""The gradient table: every exchange × degree × wrapper × what trains, against plain rows in one process.

    python -m benchmarks.parity                              # all of it, from the repository's root
    python -m benchmarks.parity --wrappers ddp --degrees 2   # some cells; the others in the results stay

A cell is a tiny model with random weights in fp32 in gloo processes on CPU, inside a wrapper that the process
asserts (tests/longseq/wrapped.py): loss and every parameter's gradient of the first step, and the weights after
three SGD steps with clipping active. Exit code 1 where one is above its tolerance; a combination that a library
cannot do stays in the table with the library's message.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.parity_report import PAGE, exceeds, table, write, write_page
from benchmarks.report import machine
from tests.distributed import run_distributed
from tests.longseq.wrapped import CASES, GROUPS, KINDS, TOLERANCES, WRAPPERS, worker

RESULTS = Path(__file__).parent / "results"
LAYOUTS = {"2": (2, 1), "3": (3, 1), "4": (4, 1), "2x2": (2, 2)}  # degree, data-parallel groups
SECONDS = 60  # at most, for one cell; a launch may take that for each of its cells
TABLE_WIDTH = 140


@dataclass(frozen=True)
class Launch:
    """Processes that are started once, and the cells that they compute."""

    layout: str
    wrappers: Sequence[str]
    kinds: Sequence[str]
    parameters: Sequence[str]

    def names(self) -> list[str]:
        """Keys of the results file."""
        return ["/".join(part) for part in product(self.kinds, [self.layout], self.wrappers, self.parameters)]

    def run(self) -> dict[str, dict[str, Any]]:
        """The errors of each cell; raises what a process raised."""
        degree, groups = LAYOUTS[self.layout]
        table = CASES if groups == 1 else GROUPS
        cases = {name: table[name] for name in self.parameters}
        ranks = run_distributed(
            worker,
            degree * groups,
            list(self.wrappers),
            cases,
            degree,
            tuple(self.kinds),
            timeout=SECONDS * len(self.names()),
        )
        return {
            f"{kind}/{self.layout}/{wrapper}/{parameters}": {
                what: max(found[wrapper, parameters, kind][what] for found in ranks) for what in TOLERANCES
            }
            for kind, wrapper, parameters in product(self.kinds, self.wrappers, self.parameters)
        }

    def parts(self) -> list[Launch]:
        """A launch for each wrapper; for one wrapper, a launch for each cell."""
        if len(self.wrappers) > 1:
            return [replace(self, wrappers=[wrapper]) for wrapper in self.wrappers]
        return [replace(self, kinds=[k], parameters=[p]) for k, p in product(self.kinds, self.parameters)]


def run(launch: Launch) -> dict[str, dict[str, Any]]:
    """The launch's cells; where one fails, smaller launches, so that only the cell at fault is lost."""
    try:
        return launch.run()
    except Exception as error:
        if len(launch.names()) > 1:
            return {name: cell for part in launch.parts() for name, cell in run(part).items()}
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {launch.names()[0]: {"error": f"{type(error).__name__}: {lines[-1] if lines else ''}"}}


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.split("\n")[0])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="degree, or 2x2")
    parser.add_argument("--wrappers", nargs="+", choices=WRAPPERS, default=list(WRAPPERS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--parameters", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of parity.json and parity.png")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Runs the cells, writing after each launch; 1 where a cell exceeds a tolerance."""
    arguments = parse(words)
    path = arguments.results / "parity.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"cells": {}}
    results |= {"machine": machine(threads=1), "tolerances": TOLERANCES}
    console = Console(width=TABLE_WIDTH)
    launches = [
        Launch(layout, arguments.wrappers, arguments.kinds, arguments.parameters)
        for layout in arguments.layouts
    ]
    names = [name for launch in launches for name in launch.names()]
    for index, launch in enumerate(launches):
        console.print(
            f"{index + 1}/{len(launches)}  degree {launch.layout}, {len(launch.names())} cells",
            highlight=False,
        )
        results["cells"] |= run(launch)
        write(results, arguments.results)
    console.print(table(results))
    complete = len(results["cells"]) == len(LAYOUTS) * len(WRAPPERS) * len(KINDS) * len(CASES)
    if complete and arguments.results == RESULTS:
        write_page(results, PAGE)
    bad = [name for name in names if exceeds(results["cells"][name], TOLERANCES)]
    for name in bad:
        console.print(f"above its tolerance: {name} {results['cells'][name]}", highlight=False)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
