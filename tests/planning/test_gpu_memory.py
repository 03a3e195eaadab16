"""What is free on a GPU, by a stand-in for torch's answers."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.distributed as dist

from align.planning.gpu_memory import (
    FRAGMENTED,
    FRAGMENTED_EXPANDABLE,
    NCCL_GROUP,
    WORKSPACES,
    Reading,
    gpu_memory,
    gpu_runtime,
    groups_of,
)
from align.planning.here import choose_levers, machine_here
from align.planning.job import Job, Precision, Rows, Strategy
from tests.distributed import run_distributed
from tests.planning.test_planning import tiny_job

GPU = torch.device("cuda", 0)


def reading(free: float, *, reserved: float = 0.0, allocated: float = 0.0) -> Reading:
    """What a GPU of 85 GB would answer."""
    return Reading(
        info=lambda _: (int(free), int(85e9)),
        reserved=lambda _: int(reserved),
        allocated=lambda _: int(allocated),
    )


def test_nothing_is_counted_twice():
    """79 GB free; of 2 GB that the allocator holds 1 is used: the other can be had without asking the device."""
    found = gpu_memory(GPU, expandable=True, reading=reading(79e9, reserved=2e9, allocated=1e9))
    assert found == pytest.approx(80e9 * (1 - FRAGMENTED_EXPANDABLE))
    fixed = gpu_memory(GPU, expandable=False, reading=reading(79e9, reserved=2e9, allocated=1e9))
    assert fixed == pytest.approx(80e9 * (1 - FRAGMENTED))
    assert fixed < found


def test_groups_have_buffers():
    assert [groups_of(1, 1), groups_of(8, 1), groups_of(8, 4)] == [0, 1, 2]
    assert gpu_runtime(0) == WORKSPACES
    assert gpu_runtime(2) == WORKSPACES + 2 * NCCL_GROUP


def test_a_gpu_is_asked_once(monkeypatch):
    """One question for a run, whatever is chosen afterwards from the answer."""
    for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    asked = []
    answers = reading(80e9)
    counting = Reading(
        info=lambda device: asked.append(device) or answers.info(device),
        reserved=answers.reserved,
        allocated=answers.allocated,
    )
    machine = machine_here(GPU, 1, products=2, reading=counting)
    assert asked == [GPU]
    assert machine.memory == pytest.approx(80e9 * (1 - FRAGMENTED_EXPANDABLE))
    assert (machine.device, machine.runtime) == ("cuda", WORKSPACES)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:512")
    fixed = machine_here(GPU, 1, products=2, reading=answers)
    assert fixed.memory == pytest.approx(80e9 * (1 - FRAGMENTED))


def test_the_disk_is_that_of_the_offload_folder(tmp_path):
    """What is free there, so that `memory=auto` does not choose a disk that is too small."""
    machine = machine_here(GPU, 1, products=2, folder=str(tmp_path), reading=reading(80e9))
    assert machine.disk_memory == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def least(rank: int, size: int) -> tuple[float, float]:
    """Each process has another GPU, of which as much is free as its number says."""
    machine = machine_here(GPU, size, products=2, degree=2, reading=reading(70e9 + 1e9 * rank))
    return machine.memory, machine.runtime


def test_the_least_of_all_processes_counts(monkeypatch):
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert not dist.is_initialized()
    found = run_distributed(least, 2)
    assert found == [found[0]] * 2
    assert found[0] == pytest.approx((70e9 * (1 - FRAGMENTED), WORKSPACES + 2 * NCCL_GROUP))


def test_levers_follow_what_is_free():
    """Of 400 GB nothing has to be kept out of memory; of 30 GB much. The sentence has what was counted as free."""
    sizes, _ = tiny_job()
    job = Job(Rows(32768, (512,) * 2), Precision(2))
    machines = [machine_here(GPU, 1, products=2, reading=reading(free)) for free in (400e9, 30e9)]
    (plenty, said), (little, _) = (choose_levers(sizes, job, Strategy(), machine) for machine in machines)
    assert plenty.checkpointing == "none"
    assert little != plenty
    assert little.checkpointing != "none"
    assert f"95% of the {machines[0].memory / 1e9:.1f} GB free here" in said
