"""One contestant in a process of its own: reads a row from stdin, runs one step, prints what it cost.

python benchmarks/worker.py '{"contestant": "ours", "suite": "dpo", "parameters": "full", "model": "embedded"}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import IO, Any

import psutil
import torch
from contestants import CONTESTANTS, Contestant, Setting
from rows import Row

from align.training.peak_memory import peak_memory


def main() -> None:
    """Loads the model, reports its size, then answers one line for each row."""
    settings = json.loads(sys.argv[1])
    answers = _claim_stdout()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    contestant = CONTESTANTS[settings.pop("contestant")](Setting(**settings))
    _touch(contestant)
    _answer(answers, {"loaded_bytes": psutil.Process().memory_info().rss})
    for line in sys.stdin:
        _answer(answers, measure(contestant, Row(**json.loads(line))))


def measure(contestant: Contestant, row: Row) -> dict[str, Any]:
    """One step: seconds on the clock and of processor time, loss, gradient norm, and the peak so far in bytes."""
    inputs = contestant.inputs(row)
    if contestant.sequences(inputs) != row.sequences():
        raise ValueError("the contestant reads other tokens than the row holds")
    model = contestant.policy
    processor, start = time.process_time(), time.perf_counter()
    loss = contestant.trainer.training_step(model, inputs)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    model.zero_grad()
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "loss": loss.item(),
        "gradient_norm": norm,
        "peak_bytes": peak_memory(),
    }


def _claim_stdout() -> IO[str]:
    """The pipe to the parent; what libraries print goes to stderr from here on."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return pipe


def _touch(contestant: Contestant) -> None:
    """Reads every weight once: a memory-mapped one counts as resident only then."""
    for weight in contestant.weights():
        weight.detach().sum()


def _answer(pipe: IO[str], content: dict[str, Any]) -> None:
    print(json.dumps(content), file=pipe, flush=True)


if __name__ == "__main__":
    main()
