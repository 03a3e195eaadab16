"""How much memory the process has used at its peak."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory() -> int:
    """Bytes: the most that torch allocated on the GPU, else the process's largest resident set."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
