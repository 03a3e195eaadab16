"""What memory a process has on this machine, and which levers fit it."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from align.core.allocator import is_expandable
from align.distributed.names import WRAPPERS
from align.planning.architecture import Architecture
from align.planning.gpu_memory import TORCH, Reading, gpu_memory, gpu_runtime, groups_of
from align.planning.job import Job, Levers, Machine, Strategy
from align.planning.memory import predict
from align.planning.request import machine_of
from align.planning.search import HEADROOM, Priced, cheapest, cheapest_levers, lever_sets, price
from align.planning.settings import GpuSettings
from align.planning.tables import gigabytes, lever_overrides, overrides


def available_memory() -> float:
    """Bytes that processes can still have: Linux's estimate, within the control group's limit."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    limits = [float(free[0])] if free else [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        limits.append(float(limit.read_text()) - float(used.read_text()))
    return max(0.0, min(limits))


def resident_memory() -> float:
    """Bytes of this process that are in memory now: Python and what it has imported."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0.6e9
    return float(int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def machines_here(processes: int) -> int:
    """Machines of this launch, which may have different numbers of GPUs: as torch's launcher says, else by this one."""
    told = os.environ.get("GROUP_WORLD_SIZE")
    if told is not None:
        return max(1, min(int(told), processes))
    return math.ceil(processes / int(os.environ.get("LOCAL_WORLD_SIZE", processes)))


def machine_here(
    device: torch.device,
    processes: int,
    *,
    products: int,
    degree: int = 1,
    folder: str | None = None,
    reading: Reading = TORCH,
) -> Machine:
    """The device that this process runs on, and those beside it; speeds are those of `gpus`' defaults.

    All processes take the least memory that one of them has, so that they plan alike: each has to call it.

    Args:
        device: of this process.
        processes: of the launch.
        products: bytes of a number in products.
        degree: processes that share a row.
        folder: `memory.offload_folder`; None is the temporary folder.
        reading: what is asked of a GPU.
    """
    disk = float(shutil.disk_usage(tempfile.gettempdir() if folder is None else folder).free)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    runtime = resident_memory()
    if device.type == "cuda":
        host = available_memory()
        settings = GpuSettings(count=processes, memory_gb=None, host_gb=host / 1e9)
        machine = replace(
            machine_of(settings, memory=0.0, runtime=0.0, products=products),
            nodes=machines_here(processes),
            disk_memory=disk,
            memory=gpu_memory(device, expandable=is_expandable(), reading=reading),
            runtime=gpu_runtime(groups_of(processes, degree)),
        )
        return _agreed(machine)
    settings = GpuSettings(
        device="cpu",
        count=processes,
        memory_gb=None,
        peak_tflops=0.05,
        mfu=0.8,
        intra_gb_per_s=1.0,
        disk_gb_per_s=1.0,
        runtime_gb=None,
        host_gb=0.0,
    )
    machine = machine_of(settings, memory=0.0, runtime=runtime, products=products)
    # What processes have already is no longer available, but counted in what each needs.
    return _agreed(replace(machine, memory=available_memory() / local + runtime, disk_memory=disk))


def _agreed(machine: Machine) -> Machine:
    """The least memory of any process, and the most machines that one of them counts; alone the machine itself."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return machine
    found: list[Machine] = [machine] * dist.get_world_size()
    dist.all_gather_object(found, machine)
    return replace(
        machine,
        memory=min(one.memory for one in found),
        host_memory=min(one.host_memory for one in found),
        disk_memory=min(one.disk_memory for one in found),
        runtime=max(one.runtime for one in found),
        nodes=max(one.nodes for one in found),
    )


def warning(sizes: Architecture, job: Job, strategy: Strategy, machine: Machine) -> str | None:
    """A sentence where the run will not fit this machine; None where it will.

    Args:
        sizes, job, strategy, machine: of the run.
    """
    memory = predict(sizes, job, strategy, machine)
    if memory.total <= machine.memory:
        return None
    prompts = machine.count // strategy.degree * job.rows.prompts * job.accumulation
    wrappers = ("none",) if machine.count == 1 else WRAPPERS
    if machine.device == "cpu":
        wrappers = (strategy.wrapper,)
    better = cheapest(sizes, job, machine, prompts=prompts, wrappers=wrappers)
    said = (
        f"This run is predicted to need {gigabytes(memory.total)} per process at its peak ({memory.phase}), and "
        f"{gigabytes(machine.memory)} are free here"
    )
    if better is None:
        return (
            f"{said}: no levers make it fit; shorten data.max_length or see `align plan` for what it needs."
        )
    launch = "" if better.strategy.wrapper == strategy.wrapper else f" under {better.strategy.wrapper}"
    return f"{said}; it fits{launch} with {' '.join(overrides(better, given=strategy, accumulation=job.accumulation))}"


def choose_levers(sizes: Architecture, job: Job, strategy: Strategy, machine: Machine) -> tuple[Levers, str]:
    """`memory=auto`: the fastest set of levers that fits here, and why, as a sentence.

    Args:
        sizes, job, machine: of the run.
        strategy: its wrapper and degree; of its levers `prefetch` alone is read.

    Returns:
        The levers; where none fits those that need the least, and the sentence says so.
    """
    best = cheapest_levers(sizes, job, strategy, machine)
    room = gigabytes(machine.memory)
    if best is None:
        best = _least(sizes, job, strategy, machine)
        said = ", ".join(lever_overrides(best.strategy.levers))
        return best.strategy.levers, (
            f"memory=auto: no set of levers fits the {room} that are free here; {said} needs the least, "
            f"{gigabytes(best.memory.total)} per process."
        )
    said = ", ".join(lever_overrides(best.strategy.levers))
    plain = predict(sizes, job, replace(strategy, levers=Levers(checkpointing="none")), machine)
    return best.strategy.levers, (
        f"memory=auto: {said}, because it is the fastest set that fits {HEADROOM:.0%} of the {room} free here: "
        f"{gigabytes(best.memory.total)} per process against {gigabytes(plain.total)} without levers."
    )


def _least(sizes: Architecture, job: Job, strategy: Strategy, machine: Machine) -> Priced:
    sets = [
        price(sizes, job, replace(strategy, levers=levers), machine)
        for levers in lever_sets(machine.device, job.rows, prefetch=strategy.levers.prefetch)
    ]
    return min(sets, key=lambda one: (one.memory.total, one.time.total))
