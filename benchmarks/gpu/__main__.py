"""What a GPU has to show, in one command; each stage writes its result at once, whatever the later ones do.

    python -m benchmarks.gpu --minutes 8                     # every stage but `miniature`, in eight minutes
    python -m benchmarks.gpu --stages kernels speed          # some; the others' results stay
    python -m benchmarks.gpu --stages length --layers 0      # measured with all layers, not extrapolated
    python -m benchmarks.gpu --miniature --out FOLDER        # tiny shapes, on a CPU too: does the script run?

Results go to benchmarks/results/gpu/CARD.json. The exit code is 1 where a stage ended in an error, where a check of
`kernels` or `step` has not passed, and where there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.gpu.parent import Run
from benchmarks.gpu.results import FOLDER, ROOT, STAGES
from benchmarks.gpu.summary import failures, table

BY_DEFAULT = STAGES[:-1]  # the miniature takes minutes of its own, and data
WIDTH = 120  # characters of the table, also where the output is a file


def main(words: Sequence[str] | None = None) -> int:
    """Runs the stages and prints the table; the exit code."""
    arguments = parse(sys.argv[1:] if words is None else words)
    console = Console(stderr=True)
    small = ROOT / "outputs" / "gpu" if arguments.miniature else FOLDER
    run = Run(
        {stage: f"benchmarks.gpu.{stage}:run" for stage in STAGES if stage in arguments.stages},
        scale="miniature" if arguments.miniature else "full",
        minutes=arguments.minutes,
        folder=arguments.out or small,
        layers=arguments.layers,
        tell=lambda said: console.print(said, highlight=False, markup=False, soft_wrap=True),
    )
    try:
        if not run.hello["cuda"] and not arguments.miniature:
            print(
                "There is no GPU here: --miniature runs every stage on the CPU, with tiny shapes.",
                file=sys.stderr,
            )
            return 1
        entries = run.stages()
    finally:
        run.close()
    Console(width=WIDTH).print(table(run.hello["card"], entries))
    return int(any(failures(stage, entry) for stage, entry in entries.items()))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(BY_DEFAULT), help="run these alone"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for all stages together")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--layers", type=int, default=4, help="of stage length; 0 measures all")
    parser.add_argument("--miniature", action="store_true", help="tiny shapes, on a CPU too")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
