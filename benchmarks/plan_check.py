"""`align plan` against measured runs: peak memory of processes on this CPU, in thirteen configurations.

    python benchmarks/plan_check.py               # all thirteen; about twelve minutes on two cores
    python benchmarks/plan_check.py --only 512    # those whose name contains it; the others in the results stay

The table goes to `results/plan_check.txt`, every number to `plan_check.json`.

Each configuration is a run of its own (`plan_worker.py`) of two steps with AdamW: a short row, which makes the
optimizer's state, and then the long one. Measured is the largest resident set of any of its processes, with
MALLOC_MMAP_THRESHOLD_=65536, without which glibc keeps freed blocks. Nothing is fitted to the configurations:
`runtime` is what this script, which has imported the same modules, has in memory before any model.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
from rich.console import Console
from rich.table import Table
from rows import text_tokens

from align.models.loading import load_tokenizer
from align.models.settings import EMBEDDED
from align.planning.planner import make_plan
from align.planning.tables import PARTS
from align.training.sampling import EpochSampler

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "plan_check.json"
SHORT = 64  # tokens of the first row's prompt
ANSWER = 128  # tokens of each answer
TOLERANCE = 0.15


@dataclass(frozen=True)
class Case:
    """A configuration: tokens of the prompt, processes that share each row, and overrides of `align train`."""

    prompt: int
    degree: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Key of the results file."""
        return f"{self.prompt} × {self.degree} {' '.join(self.overrides)}"


FULL, LORA = "model.lora.r=0", "model.lora.r=16"
CASES = [
    Case(512, 1, (FULL, "method=logo")),
    Case(512, 1, (LORA, "method=dpo")),
    Case(1024, 2, (FULL, "method=logo", "parallel=ulysses")),
    Case(1024, 1, (FULL, "method=dpo", "memory.checkpointing=full")),
    Case(1024, 2, (FULL, "method=dpo", "parallel=gather", "reference.sharding=full")),
    Case(1024, 1, (FULL, "method=logo", "memory.checkpointing=none")),
    Case(1024, 4, (FULL, "method=simpo", "parallel=gather", "memory.checkpointing=full")),
    Case(2048, 1, (LORA, "method=logo", "memory.checkpointing=none")),
    Case(2048, 1, (FULL, "method=simpo", "memory.mlp_chunk=512", "memory.offload=disk")),
    Case(2048, 2, (LORA, "method=logo", "parallel=gather", "memory.mlp_chunk=512")),
    Case(2048, 4, (LORA, "method=simpo", "parallel=ulysses")),
    Case(4096, 1, (LORA, "method=simpo")),
    Case(7936, 1, (LORA, "method=simpo", "memory.checkpointing=full", "memory.offload=disk")),
]


def common(case: Case, rows: Path) -> list[str]:
    """Overrides of every configuration."""
    return [
        *case.overrides,
        *(f"data.path={rows}", "data.eval_size=0", "data.chat=never", "model.dtype=float32"),
        *("trainer.gradient_accumulation_steps=1", f"seed={short_first()}"),
        *([f"parallel.degree={case.degree}"] if case.degree > 1 else []),
    ]


def short_first() -> int:
    """A seed under which the sampler gives the first of two rows first."""
    return next(seed for seed in range(100) if next(iter(EpochSampler(2, multiple=1, seed=seed))) == 0)


def write_rows(path: Path, tokens: list[int], tokenizer: Any, case: Case) -> None:
    """A short and a long row of real text; LOGO has two rejected answers, the others one."""
    answers = 3 if "method=logo" in case.overrides else 2
    lines = []
    for prompt in (SHORT, case.prompt):
        cuts = [0, prompt, *(prompt + ANSWER * (i + 1) for i in range(answers))]
        texts = [tokenizer.decode(tokens[a:b]) for a, b in pairwise(cuts)]
        lines.append(json.dumps({"prompt": texts[0], "chosen": texts[1], "rejected": texts[2:]}))
    path.write_text("\n".join(lines) + "\n")


def measure(case: Case, rows: Path) -> dict[str, Any]:
    """Starts the processes; returns the worker's line and its seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    overrides = [
        *common(case, rows),
        "trainer.max_steps=2",
        "trainer.save_strategy=no",
        "trainer.use_cpu=true",
    ]
    overrides.append(f"output={rows.parent / 'run'}")
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1" if case.degree > 1 else str(os.cpu_count()),
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    start, processes = time.perf_counter(), []
    for rank in range(case.degree):
        ranks = {}
        if case.degree > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.degree, "MASTER_PORT": port}
            ranks = {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in names.items()}
            ranks["LOCAL_WORLD_SIZE"] = str(case.degree)
        processes.append(
            subprocess.Popen(
                [sys.executable, str(HERE / "plan_worker.py"), json.dumps(overrides)],
                env=environment | ranks,
                stdout=subprocess.PIPE,
                stderr=(rows.parent / f"rank{rank}.log").open("w"),
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError((rows.parent / "rank0.log").read_text()[-3000:])
    line = next(line for line in outputs[0].splitlines() if line.startswith('{"peak_bytes"'))
    return json.loads(line) | {"seconds": time.perf_counter() - start}


def predict(case: Case, rows: Path) -> dict[str, Any]:
    """What `align plan` says of the same settings."""
    own = [f"gpus.count={case.degree}", "wrapper=ddp", "gpus=cpu"]
    with hydra.initialize_config_module("hydra_conf", version_base="1.3"):
        plan = make_plan(hydra.compose("plan", [*common(case, rows), *own]))
    return plan.given.memory.to_json() | {"tokens": plan.job.rows.tokens}


def show(results: dict[str, Any], console: Console) -> None:
    """Predicted against measured, with the parts of the prediction."""
    table = Table(title="peak memory of a process, GB: predicted / measured", title_justify="left")
    for heading in ("configuration", "tokens", "predicted", "measured", "error", "phase", *PARTS):
        table.add_column(heading, justify="left" if heading == "configuration" else "right")
    for name, cell in results.items():
        predicted, measured = cell["predicted"], cell["measured"]["peak_bytes"]
        parts = [f"{predicted[part] / 1e9:.2f}" for part in PARTS]
        numbers = (f"{predicted['total'] / 1e9:.2f}", f"{measured / 1e9:.2f}", f"{cell['error']:+.1%}")
        table.add_row(name, str(predicted["tokens"]), *numbers, predicted["phase"], *parts)
    console.print(table)


def main() -> None:
    """Predicts, measures, writes after every configuration; ends with 1 where an error is over the tolerance."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    console = Console(width=200)
    for module in ("align.train", "align.verify"):  # what a training process has imported
        import_module(module)
    tokenizer = load_tokenizer(EMBEDDED)
    tokens = text_tokens(tokenizer)
    old = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    results = {case.name: old[case.name] for case in CASES if case.name in old}
    for case in CASES:
        if arguments.only not in case.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.jsonl"
            write_rows(rows, tokens, tokenizer, case)
            predicted, measured = predict(case, rows), measure(case, rows)
        error = predicted["total"] / measured["peak_bytes"] - 1
        results[case.name] = {"predicted": predicted, "measured": measured, "error": error}
        console.print(f"{case.name}: {error:+.1%} in {measured['seconds']:.0f} s", highlight=False)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    table = Console(width=200, record=True)
    show(results, table)
    arguments.output.with_suffix(".txt").write_text(table.export_text())
    worst = max(abs(cell["error"]) for cell in results.values())
    console.print(f"worst error {worst:.1%}, tolerance {TOLERANCE:.0%}")
    sys.exit(int(worst > TOLERANCE))


if __name__ == "__main__":
    main()
