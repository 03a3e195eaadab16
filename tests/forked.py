"""A command as a process of its own, forked from a server that has imported the libraries: a start takes a second.

process = forked(["align", "train", "output=FOLDER", …])      # what it says goes to FOLDER.log
wait_for(lambda: (FOLDER / "checkpoint-2").exists(), process)
process.kill()
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from align import cli
from tests.distributed import run_distributed


def command(rank: int, size: int, argv: list[str], log: Path | None = None) -> int:
    """The command in this process; its exit code. What it says goes to `log`, by default `OUTPUT.log`."""
    if log is None:
        (output,) = (word.removeprefix("output=") for word in argv if word.startswith("output="))
        log = Path(f"{output}.log")
    with open(log, "a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.update(ACCELERATE_USE_CPU="true", MASTER_ADDR="localhost", MASTER_PORT="1")
    sys.argv = argv
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def run(argv: list[str], size: int = 1, *, log: Path | None = None, timeout: float = 240) -> list[int | None]:
    """Exit codes of `size` processes; one alone has no process group, as a user's."""
    if size > 1:
        return run_distributed(command, size, argv, log, timeout=timeout)
    process = forked(argv, log=log)
    process.join(timeout)
    return [process.exitcode]


def fork(function: Callable[..., None], *args: Any) -> multiprocessing.Process:
    """`function(*args)` in a process of its own, which has started."""
    process = multiprocessing.get_context("forkserver").Process(target=function, args=args)
    process.start()
    return process


def forked(
    argv: list[str], *, log: Path | None = None, file_limit: int | None = None
) -> multiprocessing.Process:
    """The command as a process of its own; no file may be longer than `file_limit` bytes."""
    process = multiprocessing.get_context("forkserver").Process(
        target=_exit_with, args=(argv, log, file_limit)
    )
    process.start()
    return process


def _exit_with(argv: list[str], log: Path | None, file_limit: int | None) -> None:
    torch.set_num_threads(1)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # where tests run behind a shell's &, it is ignored
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.exit(command(0, 1, argv, log))


def wait_for(condition: Callable[[], bool], process: multiprocessing.Process, seconds: float = 240.0) -> None:
    """Until `condition()`; fails where the process ends before that."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), "it ended too early"
        assert time.monotonic() < deadline, "it did not get there in time"
        time.sleep(0.002)
