"""Runs that SIGKILL ends, and what became of them. Each is a fork, so that a kill costs no start of Python."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import torch

from tests.generation.helpers import local_generator, workspace
from tests.synthesis.helpers import Scripted, pipeline, word_documents


def start(output: Path) -> int:
    """A process that makes the rows in `output`."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        pipeline().run(word_documents(2), workspace(output, Scripted(local_generator(batch_size=2))))
        status = 0
    finally:
        os._exit(status)


def finish(child: int) -> bool:
    """Whether it ended by itself, and well."""
    return os.waitpid(child, 0)[1] == 0


def written(output: Path) -> int:
    """Bytes of the calls that are on disk."""
    return sum(path.stat().st_size for path in (output / "work").glob("*.jsonl"))


def kill_at(child: int, output: Path, size: int, later: float) -> bool:
    """SIGKILL once the calls on disk are that long, however fast they come, and `later` s; whether it was in time."""
    over = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while written(output) < size and os.waitid(os.P_PID, child, over) is None:
        time.sleep(0.0005)
    time.sleep(later)
    os.kill(child, signal.SIGKILL)
    return not finish(child)


def main(folder: Path, count: int) -> None:
    """One unbroken run, then `count` broken ones at moments spread over its calls; writes report.json.

    Belongs into a process of its own: it forks.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    assert finish(start(folder / "whole"))
    size = written(folder / "whole")
    expected = (folder / "whole" / "train.jsonl").read_bytes()
    rng = random.Random(0)
    report = {"equal": 0, "killed": 0, "with_some_calls_done": 0, "bytes": size}
    for i in range(count):
        output = folder / str(i)
        at, later = round(rng.uniform(0.0, 0.9) * size), rng.uniform(0.0, 0.01)
        report["killed"] += kill_at(start(output), output, at, later)
        ledger = output / "work" / "answers.jsonl"
        report["with_some_calls_done"] += ledger.is_file() and ledger.stat().st_size > 0
        assert finish(start(output))
        report["equal"] += (output / "train.jsonl").read_bytes() == expected
    (folder / "report.json").write_text(json.dumps(report))
