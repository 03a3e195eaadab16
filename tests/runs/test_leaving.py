"""A process that was in a process group ends with its exit code, also where a gloo thread still works."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROCESS = """
import atexit, sys, time
begun = time.perf_counter()
sum(range(10**7))
numbers = int(10**7 * 4 / (time.perf_counter() - begun))
atexit.register(sum, range(numbers))  # the last exit function: holds the interpreter's lock to the end, four seconds

import torch
import torch.distributed as dist
from align.runs.command import hydra_entry

rank, code, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
held = []  # as DDP and DeepSpeed hold a group

def work(config):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    held.append(dist.group.WORLD)
    dist.barrier()
    if rank == 1:
        time.sleep(1)
    tensor = torch.ones(4)
    tensor.note = "kept by Python"  # so that dropping it takes the lock
    sent = dist.all_reduce(tensor, async_op=True)
    if rank == 1:
        sent.wait()
        time.sleep(1)
    print("all is written", end="")
    return code

atexit.register(print, "exit functions ran", file=sys.stderr)
sys.argv = ["align train", f"output={folder}/out", "data.path=unread"]
hydra_entry("train")(work)()
"""


@pytest.mark.parametrize("code", [0, 3])
def test_a_gloo_thread_that_still_works_does_not_abort_the_process(tmp_path, code):
    """Rank 0 leaves first; its gloo thread drops a tensor a second later."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(code), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in started:
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == code, errors
        assert printed == "all is written"
        assert errors.strip().endswith("exit functions ran")
