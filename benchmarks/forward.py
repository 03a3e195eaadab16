"""Speed and memory of a training step: this toolkit against TRL's DPOTrainer and against padded rows.

    python benchmarks/forward.py              # everything; README.md says how long it takes
    python benchmarks/forward.py --quick      # a minute, to see that it runs

Every contestant of a comparison is a process of its own that holds the model; this one hands them the same
rows in turn (A B C, A B C, …), so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
from rich.console import Console
from rows import Row, cut_row, text_tokens

from align.models.loading import load_tokenizer
from align.models.settings import EMBEDDED

HERE = Path(__file__).parent
TABLE_WIDTH = 140  # characters, also where the output is a file
WARMUP_PROMPT = 512  # tokens at most: threads and libraries get ready on less than the full length
OURS = {"keep_attention": "ours", "full": "ours_full"}  # memory.checkpointing → contestant


@dataclass(frozen=True)
class Cell:
    """One comparison: a suite at one size. `answers` are lengths in tokens, the chosen one first."""

    suite: str
    parameters: str
    prompt: int
    kind: str
    answers: tuple[int, ...]

    @property
    def name(self) -> str:
        """Key of the results file."""
        return f"{self.parameters}/{self.suite}/{self.prompt}/{self.kind}"


class Worker:
    """A contestant's process."""

    def __init__(self, contestant: str, cell: Cell, *, model: str, threads: int, log: Path) -> None:
        settings = {
            "suite": cell.suite,
            "parameters": cell.parameters,
            "model": model,
            "contestant": contestant,
        }
        environment = {
            # glibc would keep freed blocks, and the peak would read about twice the true one.
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        self.contestant, self.log = contestant, log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), json.dumps(settings)],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.loaded_bytes: int = self._read()["loaded_bytes"]

    def step(self, row: Row) -> dict[str, Any]:
        """One forward and backward pass; see `worker.measure`."""
        assert self.process.stdin is not None
        print(json.dumps(row.to_json()), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text().splitlines()[-15:])
            raise RuntimeError(f"{self.contestant} ended with code {self.process.wait()}:\n{tail}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


@contextmanager
def workers(cell: Cell, arguments: argparse.Namespace) -> Iterator[list[Worker]]:
    """The cell's contestants, started one after the other."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = []
        for contestant in [*(OURS[mode] for mode in arguments.checkpointing), report.RIVAL[cell.suite]]:
            worker = Worker(
                contestant,
                cell,
                model=arguments.model,
                threads=arguments.threads,
                log=folder / f"{contestant}.log",
            )
            stack.callback(worker.close)
            started.append(worker)
        yield started


def measure(cell: Cell, tokens: list[int], arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All rounds of a cell: `arguments.warmup`, then `arguments.rounds` that count; every one a row of its own."""
    with workers(cell, arguments) as contestants:
        rounds: dict[str, list[dict[str, Any]]] = {worker.contestant: [] for worker in contestants}
        for index in range(arguments.warmup + arguments.rounds):
            warming = index < arguments.warmup
            prompt = min(cell.prompt, WARMUP_PROMPT) if warming else cell.prompt
            row = cut_row(tokens, index, prompt=prompt, answers=list(cell.answers))
            for worker in contestants:
                step = worker.step(row) | {"warmup": warming}
                rounds[worker.contestant].append(step)
                console.print(
                    f"{cell.name} round {index} {worker.contestant}: {step['seconds']:.2f} s, "
                    f"peak {step['peak_bytes'] / 1e9:.2f} GB, loss {step['loss']:.6f}",
                    style="dim",
                    highlight=False,
                )
        return {
            worker.contestant: {
                "loaded_bytes": worker.loaded_bytes,
                "peak_bytes": rounds[worker.contestant][-1]["peak_bytes"],
                "rounds": rounds[worker.contestant],
            }
            for worker in contestants
        }


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """The comparisons that the command line asks for, small ones first."""
    equal, low, high = arguments.answer, arguments.answer // 2, arguments.answer * 3 // 2
    lengths = {
        "equal": {"dpo": (equal, equal), "logo": (equal, equal, equal)},
        "unequal": {"dpo": (high, low), "logo": (equal, low, high)},
    }
    return [
        Cell(suite, arguments.parameters, prompt, kind, lengths[kind][suite])
        for prompt in sorted(arguments.prompts)
        for suite in arguments.suites
        for kind in arguments.kinds
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2048, 4096], help="lengths, tokens")
    parser.add_argument(
        "--answer", type=int, default=128, help="tokens; unequal ones: half to one and a half"
    )
    parser.add_argument("--suites", nargs="+", choices=report.RIVAL, default=list(report.RIVAL))
    parser.add_argument("--kinds", nargs="+", choices=("equal", "unequal"), default=["equal", "unequal"])
    parser.add_argument("--parameters", choices=("full", "lora"), default="full", help="what trains")
    parser.add_argument("--checkpointing", nargs="+", choices=OURS, default=list(OURS), help="of ours")
    parser.add_argument("--warmup", type=int, default=1, help="steps of each contestant that do not count")
    parser.add_argument("--rounds", type=int, default=3, help="measured steps of each contestant")
    parser.add_argument("--threads", type=int, default=2, help="of each contestant; they run in turn")
    parser.add_argument("--model", default=EMBEDDED, help="as model.path")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of forward.json and .png"
    )
    parser.add_argument("--quick", action="store_true", help="prompt 96, unequal answers of 8 to 24 tokens")
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.prompts, arguments.answer, arguments.kinds = [96], 16, ["unequal"]
        arguments.warmup, arguments.rounds = 0, 1
    return arguments


def main() -> None:
    """Measures, and after every cell writes what there is: a broken run keeps its finished cells."""
    arguments, console = parse(), Console()
    console.width = max(console.width, TABLE_WIDTH)
    tokens = text_tokens(load_tokenizer(arguments.model))
    path = arguments.output / "forward.json"
    results = json.loads(path.read_text()) if path.is_file() else {"cells": {}}
    for cell in cells(arguments):
        results["cells"][cell.name] = {
            "answers": cell.answers,
            "machine": report.machine(arguments.threads),
            "warmup": arguments.warmup,
            "rounds": arguments.rounds,
            "contestants": measure(cell, tokens, arguments, console),
        }
        report.write(results, arguments.output)
    console.print(report.table(results))
    console.print(f"written: {path} and {path.with_suffix('.png')}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
