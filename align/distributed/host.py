"""Small numbers that processes tell each other on the host, so that none of them waits for its device.

A GPU's own collectives would have their results read there, behind everything that the GPU still has to do; meanwhile
the CPU could not hand it the next kernels. So they go by gloo, over the network, also where a run's groups are NCCL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from align.core.errors import UserError

# Group → the one of the same processes that takes tensors of the CPU.
_HOST_GROUPS: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()
_ROOM = 64  # numbers of the first message of `gather_numbers`


def several_processes() -> bool:
    """Whether this process computes beside others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def host_group(group: dist.ProcessGroup | None = None) -> dist.ProcessGroup:
    """The group of the same processes whose collectives take tensors of the CPU; made when it is first asked for.

    Args:
        group: None is the whole world; all of its processes call this together.

    Raises:
        UserError: gloo finds no way between the processes.
    """
    group = group or dist.group.WORLD
    assert group is not None, "no process group has been started"
    if "cpu:" in dist.get_backend_config(group):
        return group
    if group not in _HOST_GROUPS:
        ranks = dist.get_process_group_ranks(group)
        try:
            made = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"The processes {ranks[0]} … {ranks[-1]} cannot talk to each other by gloo "
                f"({str(error).splitlines()[0]}): set GLOO_SOCKET_IFNAME to the network interface that connects their "
                "machines."
            ) from error
        _HOST_GROUPS[group] = made
    return _HOST_GROUPS[group]


def gather_numbers(numbers: Sequence[int], group: dist.ProcessGroup | None = None) -> list[list[int]]:
    """Every process's whole numbers (of 64 bits), in the order of the group's ranks.

    Two processes with `[5]` and `[7, 8]` both get `[[5], [7, 8]]`. One message of 64 numbers; a second where somebody
    has more.

    Args:
        numbers: this process's; each may have another count of them.
        group: the processes; None is the whole world.
    """
    own = [len(numbers), *numbers]
    rows = _gathered(own, _ROOM, group)
    most = max(row[0] for row in rows) + 1
    if most > _ROOM:
        rows = _gathered(own, most, group)
    return [row[1 : row[0] + 1] for row in rows]


def _gathered(numbers: list[int], room: int, group: dist.ProcessGroup | None) -> list[list[int]]:
    """The first `room` numbers of every process, filled up with zeros."""
    own = torch.zeros(room, dtype=torch.long)
    own[: len(numbers)] = torch.tensor(numbers[:room])
    found = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, own, group=host_group(group))
    return [row.tolist() for row in found]


def sum_numbers(numbers: Sequence[int], group: dist.ProcessGroup | None = None) -> list[int]:
    """Each of equally many whole numbers summed over the processes: `[1, 2]` and `[3, 4]` give `[4, 6]` on both."""
    total = torch.tensor(numbers, dtype=torch.long)
    dist.all_reduce(total, group=host_group(group))
    return total.tolist()
