"""Runs a function in N gloo processes: results come back, an exception comes back, and a hang ends.

def worker(rank, size, shift):          # at module level, so that a fresh process can import it
    return rank + shift

assert run_distributed(worker, 2, 10) == [10, 11]
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

# Processes are forked from a server that has imported the libraries once, and has run nothing.
multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.distributed.preload"])


LATE = 10.0  # seconds that a process waits with an error which another one's end has caused


class HangError(Exception):
    """The processes did not end in time."""


def run_distributed(
    worker: Callable[..., Any], size: int, *args: Any, timeout: float = 240.0, **kwargs: Any
) -> list[Any]:
    """What `worker(rank, size, *args, **kwargs)` returned in each of `size` processes.

    Args:
        worker: importable function; runs with the default process group (gloo) and one thread.
        size: how many processes.
        args: picklable.
        timeout: seconds until the processes are ended and `HangError` is raised.
        kwargs: picklable.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a process raised; its traceback is in the message, and
            the other processes have been ended.
        HangError: not all ended in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = start_processes(
            _run,
            args=(worker, size, folder, timeout, args, kwargs),
            nprocs=size,
            join=False,
            start_method="forkserver",
        )
        deadline = time.monotonic() + timeout
        while not context.join(timeout=1, grace_period=1):
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                raise HangError(f"{worker.__name__} on {size} processes did not end within {timeout:.0f} s")
        return [torch.load(_result(folder, rank), weights_only=False) for rank in range(size)]


def _run(
    rank: int,
    worker: Callable[..., Any],
    size: int,
    folder: str,
    timeout: float,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """One process: joins the group, works, leaves its result in a file."""
    torch.set_num_threads(1)
    # What libraries that look for a launcher (accelerate, DeepSpeed) expect to find.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout),
    )
    try:
        torch.save(worker(rank, size, *args, **kwargs), _result(folder, rank))
        if dist.is_initialized():  # a command leaves its group by itself
            dist.barrier()
            dist.destroy_process_group()
    except RuntimeError as error:
        if "gloo" in str(error):  # another one has died: its own error counts, and has to be heard first
            time.sleep(LATE)
        raise


def _result(folder: str, rank: int) -> Path:
    return Path(folder) / f"result-{rank}.pt"
