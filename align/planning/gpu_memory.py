"""What memory a run can still have on the GPU of this process.

Asked once for a run, before its model is loaded: then nothing of what a plan counts is on the device. What the process
itself has there already (the context, a communicator that has sent something, tensors of others) is no longer free and
is not counted again; memory that its allocator holds and no tensor uses is.

Three parts are assumptions, until a run on a GPU says more:

- the allocator loses a share to pieces between tensors: `FRAGMENTED`, less where its segments grow;
- libraries' own buffers for matrix products and kernels: `WORKSPACES`;
- NCCL makes buffers for each process group that sends something: `NCCL_GROUP`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

FRAGMENTED = (
    0.06  # of the memory that a run can have, in segments of a fixed size (an assumption; not measured here)
)
FRAGMENTED_EXPANDABLE = 0.02  # the same where segments grow (an assumption; not measured here)
WORKSPACES = 0.3e9  # bytes (an assumption; not measured here)
NCCL_GROUP = 0.5e9  # bytes of a process group (an assumption; not measured here)


@dataclass(frozen=True)
class Reading:
    """What is asked of a device; of torch where nothing else is given.

    Attributes:
        info: device → bytes that are free and bytes in all, of all processes.
        reserved: device → bytes that this process's allocator holds.
        allocated: device → bytes of them that tensors use.
    """

    info: Callable[[torch.device], tuple[int, int]] = torch.cuda.mem_get_info
    reserved: Callable[[torch.device], int] = torch.cuda.memory_reserved
    allocated: Callable[[torch.device], int] = torch.cuda.memory_allocated


TORCH = Reading()


def gpu_memory(device: torch.device, *, expandable: bool, reading: Reading = TORCH) -> float:
    """Bytes of tensors that this process can still make on the device.

    79 GB free, 2 GB held by the allocator of which tensors use 1: (79 + 2 − 1) · 0.98 = 78.4 GB where segments grow.

    Args:
        device: of this process.
        expandable: whether the allocator's segments grow.
        reading: what is asked.
    """
    free, _ = reading.info(device)
    unused = reading.reserved(device) - reading.allocated(device)
    lost = FRAGMENTED_EXPANDABLE if expandable else FRAGMENTED
    return (free + unused) * (1 - lost)


def gpu_runtime(groups: int) -> float:
    """Bytes that libraries take beside tensors.

    Args:
        groups: process groups that a run will make: none on one process, the launch's own, and those of a degree.
    """
    return WORKSPACES + groups * NCCL_GROUP


def groups_of(processes: int, degree: int) -> int:
    """Process groups that send something: of 8 processes at degree 4 the launch's and the row's; alone none."""
    if processes == 1:
        return 0
    return 2 if degree > 1 else 1
