"""Every class of the installed transformers that generates text: does the shared-prefix forward compute it exactly?

    python -m benchmarks.architectures                 # those that are not in the results yet
    python -m benchmarks.architectures --again         # all, anew; some minutes on one core
    python -m benchmarks.architectures --only qwen3    # those whose name contains it, anew

A class is built small in everything from its own default configuration, with one layer of every kind and windows
shorter than its rows, and computes a step on padded rows and on a shared prefix, each in a process of its own with
limits of memory and time. `results/architectures.json` is written as each ends; `docs/architectures.md` shows it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers

from align.core.files import write_json
from benchmarks.architecture_worker import architectures, in_a_process

RESULTS = Path(__file__).parent / "results" / "architectures.json"


def main() -> None:
    """Examines the classes that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--again", action="store_true", help="all classes, also those in the results")
    parser.add_argument("--only", nargs="+", default=[], help="those whose name contains one of these")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    rows: dict[str, Any] = json.loads(asked.results.read_text())["classes"] if asked.results.is_file() else {}
    if asked.again:
        rows = {}
    wanted = [
        each
        for each in architectures()
        if (any(part in each.name for part in asked.only) if asked.only else each.name not in rows)
    ]
    begun = time.monotonic()
    for i, architecture in enumerate(wanted):
        rows[architecture.name] = in_a_process(architecture)
        left = (time.monotonic() - begun) / (i + 1) * (len(wanted) - i - 1)
        said = rows[architecture.name]
        print(
            f"{i + 1}/{len(wanted)} {architecture.name}: {said['verdict']} {said.get('sentence', '')[:160]} "
            f"({left:.0f} s left)",
            file=sys.stderr,
            flush=True,
        )
        write_json(asked.results, {"versions": versions(), "classes": rows})
    print(Counter(row["verdict"] for row in rows.values()))


def versions() -> dict[str, str]:
    """What the verdicts were found with."""
    return {"torch": torch.__version__, "transformers": transformers.__version__}


if __name__ == "__main__":
    main()
