"""Calls shared among the processes of one launch, so that each is made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def own_share(missing: Callable[[], Sequence[str]]) -> list[str]:
    """Every n-th of what is missing, beginning with this process's place; all of it where there is one process.

    Only the first process looks at what is finished, and tells the others: a process that comes later would see
    what the first ones have finished since, and take another n-th. All processes have to call this, and none may
    write before it returns.

    Args:
        missing: gives digests of calls that are not finished, each once; called in the first process alone.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState()
    told: list[Any] = [list(missing()) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(told, from_process=0)
    return list(told[0][state.process_index :: state.num_processes])
