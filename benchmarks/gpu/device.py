"""A GPU, or the CPU in its place: its clock, its memory, its free room."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

GIB = 2**30
PATIENCE = {"full": 1.0, "miniature": 0.02}  # seconds over which short calls are timed, by scale
MOST = 20  # of them


class Device:
    """Where a stage measures.

    Attributes:
        torch: torch's device.
        cuda: whether it is a GPU.
        patience: seconds over which short calls are timed.
    """

    def __init__(self, scale: str = "full") -> None:
        self.patience = PATIENCE[scale]
        self.cuda = torch.cuda.is_available()
        self.torch = torch.device("cuda" if self.cuda else "cpu")

    @property
    def card(self) -> str:
        """The GPU's name, or `CPU` and the processor's."""
        return torch.cuda.get_device_name() if self.cuda else f"CPU {_processor()}"

    def synchronize(self) -> None:
        """Waits until everything that was started has ended."""
        if self.cuda:
            torch.cuda.synchronize()

    def check(self) -> None:
        """Raises what an earlier call on the GPU has left: after an illegal access nothing runs there any more."""
        self.synchronize()

    def clean(self) -> None:
        """Gives back what nobody holds, and counts the peak of memory anew from here."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """GiB that tensors held at most since `clean`; None on a CPU, where torch does not count."""
        return torch.cuda.max_memory_allocated() / GIB if self.cuda else None

    def held_gib(self) -> float | None:
        """GiB that tensors hold now; None on a CPU."""
        return torch.cuda.memory_allocated() / GIB if self.cuda else None

    def room_gib(self) -> float | None:
        """GiB that tensors can have in all: what is free, and what this process holds already; None on a CPU."""
        if not self.cuda:
            return None
        return (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / GIB

    def seconds(self, run: Callable[[], object], *, warm: int = 1, most: int = MOST) -> float:
        """Seconds of one call, from as many as fit `patience` (1 to `most`), after `warm` that do not count."""
        for _ in range(warm):
            run()
        first = self._timed(run, 1)
        times = max(1, min(most, int(self.patience / max(first, 1e-9))))
        return first if times == 1 else self._timed(run, times)

    def _timed(self, run: Callable[[], object], times: int) -> float:
        self.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            run()
        self.synchronize()
        return (time.perf_counter() - start) / times


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
