"""Sequence parallelism on one machine: n processes with one thread each against one process with n threads.

    python -m benchmarks.parallel_speed                                  # prompt 4096, degree 2, three rounds
    python -m benchmarks.parallel_speed --prompt 8192 --degrees 2 4      # activation memory at two degrees
    python -m benchmarks.parallel_speed --quick                          # to see that it runs

A step is LOGO's forward and backward on 1 + 2 answers, SmolLM2-135M-Instruct, fp32, full parameters, DDP around the
processes of a group. The contestants take turns, each time in fresh processes; the other cores have to be quiet.
Speed is the seconds of one process over those of the group, within a round. Activation memory is the step's peak of
a process's resident set above what it holds before (weights and gradients included there), its largest process
against one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel

from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.parallel import start_parallel
from align.models.loading import load_causal_lm
from align.models.settings import EMBEDDED, ModelSettings
from benchmarks.report import machine
from losses import logo_loss
from tests.distributed import run_distributed
from tests.longseq.plain import make_example

RESULTS = Path(__file__).parent / "results"
WARMUP_PROMPT = 64  # tokens; gradients exist afterwards, and count as held
SECONDS = 3600  # for one contestant


def step(model: Any, example: Any, parallel: Any) -> float:
    """Forward and backward; the loss."""
    logps = pair_logps(model, pack([example]), parallel=parallel)
    loss = logo_loss(logps, beta=2.5, gamma=0.25, sft_weight=0.1).loss.mean()
    loss.backward()
    return loss.item()


def worker(rank: int, size: int, settings: dict[str, Any]) -> dict[str, float]:
    """One process of a contestant: a step at full length after a short one."""
    torch.set_num_threads(settings["threads"])
    base = load_causal_lm(ModelSettings(path=settings["model"]), attention=ATTENTION).train()
    apply_checkpointing(base, settings["checkpointing"])
    model = base if size == 1 else DistributedDataParallel(base, gradient_as_bucket_view=True)
    parallel = None if size == 1 else start_parallel(settings["kind"], size)
    rng = np.random.default_rng(0)
    short, row = (
        make_example(rng, prompt=prompt, answers=[settings["answer"]] * 3)
        for prompt in (WARMUP_PROMPT, settings["prompt"])
    )
    for _ in range(2):  # DDP allocates its buckets anew before the second step
        step(model, short, parallel)
    dist.barrier()
    held = reset_peak()
    started, processor = time.perf_counter(), time.process_time()
    loss = step(model, row, parallel)
    return {
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - processor,
        "activation_bytes": status("VmHWM") - held,
        "loss": loss,
    }


def status(key: str) -> int:
    """A size out of Linux's account of this process, in bytes: VmRSS now, VmHWM its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: this measurement needs Linux")


def reset_peak() -> int:
    """Lets the peak start from what is resident now, which is returned in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def measure(kind: str, degree: int, arguments: argparse.Namespace) -> dict[str, float]:
    """One round of a contestant: the slowest and the largest of its processes."""
    settings = {
        **{key: getattr(arguments, key) for key in ("model", "prompt", "answer", "checkpointing")},
        "kind": kind,
        "threads": arguments.threads if degree == 1 else 1,
    }
    ranks = run_distributed(worker, degree, settings, timeout=SECONDS)
    return {
        **{key: max(found[key] for found in ranks) for key in ("seconds", "activation_bytes", "loss")},
        "processor_seconds": sum(found["processor_seconds"] for found in ranks),
    }


def compare(rounds: Sequence[dict[str, float]], alone: Sequence[dict[str, float]]) -> dict[str, float]:
    """A contestant against one process on the same rounds: medians of the ratios."""
    pairs = list(zip(rounds, alone, strict=True))
    return {
        "speed": statistics.median(b["seconds"] / a["seconds"] for a, b in pairs),
        "processor_speed": statistics.median(
            b["processor_seconds"] / a["processor_seconds"] for a, b in pairs
        ),
        "activation_memory": statistics.median(
            a["activation_bytes"] / b["activation_bytes"] for a, b in pairs
        ),
        "loss_difference": max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in pairs),
    }


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parallel_speed", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--prompt", type=int, default=4096, help="tokens")
    parser.add_argument("--answer", type=int, default=128, help="tokens of each of the 1 + 2 answers")
    parser.add_argument("--degrees", type=int, nargs="+", default=[2])
    parser.add_argument("--kinds", nargs="+", choices=("ulysses", "gather"), default=["ulysses", "gather"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of the one process")
    parser.add_argument("--checkpointing", default="keep_attention")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one round of 256 tokens; writes nothing")
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.prompt, arguments.answer, arguments.rounds = 256, 32, 1
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    """Measures in turns, prints the ratios and writes them."""
    # glibc would keep freed blocks, and the peak would read about twice the true one.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    arguments = parse(words)
    contestants = [("none", 1), *((kind, degree) for degree in arguments.degrees for kind in arguments.kinds)]
    rounds: dict[tuple[str, int], list[dict[str, float]]] = {contestant: [] for contestant in contestants}
    console = Console()
    for index in range(arguments.rounds):
        for kind, degree in contestants:
            found = measure(kind, degree, arguments)
            rounds[kind, degree].append(found)
            console.print(
                f"round {index + 1}: {kind} × {degree}  {found['seconds']:.1f} s  "
                f"{found['activation_bytes'] / 1e6:.0f} MB  loss {found['loss']:.5f}",
                highlight=False,
            )
    alone = rounds["none", 1]
    summary = {f"{kind}/{degree}": compare(rounds[kind, degree], alone) for kind, degree in contestants[1:]}
    for name, row in summary.items():
        console.print(
            f"{name}: {row['speed']:.2f} × the speed of one process with {arguments.threads} threads, "
            f"{row['activation_memory']:.2f} × its activation memory, loss off by {row['loss_difference']:.0e}",
            highlight=False,
        )
    if not arguments.quick:
        path = arguments.results / f"parallel_{arguments.prompt}.json"
        content = {
            "machine": machine(arguments.threads),
            "prompt": arguments.prompt,
            "parameters": "all",  # train
            "checkpointing": arguments.checkpointing,
            "rounds": {f"{kind}/{degree}": found for (kind, degree), found in rounds.items()},
            "summary": summary,
        }
        path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
