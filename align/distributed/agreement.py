"""What processes have to agree on before they compute together: else they would hang, or train on nonsense."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from align.core.errors import UserError


def agree_on_calls(model: nn.Module, head_calls: list[int], device: torch.device) -> list[int]:
    """How often every process calls the model, and the head (or a layer's tiles) within each call.

    Where a forward call runs collectives across the world, processes whose rows are packed differently would
    call the model or its head unequally often, and the one with more calls would wait for ever.

    Args:
        model: the policy as it is called, wrapped or not.
        head_calls: for each forward call of this process, how often the head is called in it.
        device: where the compared tensors live.

    Returns:
        `head_calls` itself where nothing has to be equal; else one entry for each forward call of the process
        with the most, each the largest of all processes.
    """
    if not _forward_communicates(model):
        return head_calls
    rows = torch.tensor(len(head_calls), device=device)
    dist.all_reduce(rows, op=dist.ReduceOp.MAX)
    most = torch.ones(int(rows), dtype=torch.long, device=device)
    most[: len(head_calls)] = torch.tensor(head_calls, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return most.tolist()


def _forward_communicates(model: nn.Module) -> bool:
    """Whether calling the model involves other processes: DDP sends buffers, FSDP2 and ZeRO-3 gather weights."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return False
    if isinstance(model, DistributedDataParallel):
        return True
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def check_same_settings(settings: Mapping[str, Any], *, device: torch.device | str) -> None:
    """Compares settings over all processes: different ones would hang them, or spoil what they train.

    Args:
        settings: a configuration as nested mappings.
        device: where the compared tensors live.

    Raises:
        UserError: on every process, naming two of them and the keys in which they differ.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    own = _flat(settings)
    differing = _differing(dict(sorted(own.items())), dist.group.WORLD, device)
    if differing is None:
        return
    other, everyone = differing
    first, second = everyone[0], everyone[other]
    keys = [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]
    shown = [f"{key}={first.get(key)} against {key}={second.get(key)}" for key in keys[:3]]
    more = f" and {len(keys) - 3} keys more" if len(keys) > 3 else ""
    raise UserError(
        f"Processes 0 and {other} were started with different settings ({', '.join(shown)}{more}): "
        "start every process with the same command."
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"a": {"b": 1}}` as `{"a.b": "1"}`."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def check_agreement(
    value: Any, group: dist.ProcessGroup | None, *, what: str, device: torch.device | str | None = None
) -> None:
    """Every process of the group has to come with the same `value`, compared by its text.

    Args:
        value: settings, a hash of rows, or what the data count.
        group: the processes that compare.
        what: `settings`, `rows` or `data`, for the message.
        device: where the compared tensor lives; needed where the backend takes no CPU tensors.

    Raises:
        UserError: on every process of the group, naming two that differ.
    """
    differing = _differing(str(value), group, device)
    if differing is None:
        return
    other, texts = differing
    first, second = (dist.get_global_rank(group, rank) if group else rank for rank in (0, other))
    raise UserError(
        f"Processes {first} and {second} came with different {what} ({texts[0]} against {texts[other]}): "
        f"all processes that compute together need the same {what}, in the same order."
    )


def _differing(
    value: Any, group: dist.ProcessGroup | None, device: torch.device | str | None
) -> tuple[int, list[Any]] | None:
    """The first rank of the group whose value is not rank 0's, and every rank's; None where all agree.

    Hashes are compared first, so that agreement costs one small all-gather.
    """
    number = int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=7).digest(), "big")
    own = torch.tensor([number], device=device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group=group)
    table = torch.cat(gathered)
    differing = (table != table[0]).nonzero()
    if not len(differing):
        return None
    values: list[Any] = [None] * len(table)
    dist.all_gather_object(values, value, group=group)
    return int(differing[0]), values
