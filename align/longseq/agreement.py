"""What processes have to agree on before they compute together: else they would hang, or train on nonsense."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from align.errors import UserError
from align.longseq.shared_prefix import SharedPrefixBatch


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


def check_same_rows(batch: SharedPrefixBatch, group: dist.ProcessGroup, *, settings: str) -> None:
    """Compares a hash of the batch across the group: ranks with different rows would train on nonsense.

    Args:
        batch: this process's rows.
        group: the processes that have to read the same ones.
        settings: what else they need in common, as text.

    Raises:
        UserError: on every rank of the group, naming two that differ.
    """
    digest = hashlib.blake2b(settings.encode())
    for row in batch.rows:
        digest.update(repr(row.layout).encode())
        for value in vars(row).values():
            if isinstance(value, Tensor):
                digest.update(value.cpu().numpy().tobytes())
    check_agreement(digest.hexdigest()[:16], group, what="rows", device=batch.rows[0].input_ids.device)


def check_agreement(
    value: Any, group: dist.ProcessGroup | None, *, what: str, device: torch.device | str | None = None
) -> None:
    """Every process of the group has to come with the same `value`, compared by its text.

    Args:
        value: settings, or a hash of rows.
        group: the processes that compare.
        what: `settings` or `rows`, for the message.
        device: where the compared tensor lives; needed where the backend takes no CPU tensors.

    Raises:
        UserError: on every process of the group, naming two that differ.
    """
    text = str(value)
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
    own = torch.tensor([number], device=device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group=group)
    table = torch.cat(gathered)
    differing = (table != table[0]).nonzero()
    if not len(differing):
        return
    texts: list[Any] = [None] * len(table)
    dist.all_gather_object(texts, text, group=group)
    other = int(differing[0])
    first, second = (dist.get_global_rank(group, rank) if group else rank for rank in (0, other))
    raise UserError(
        f"Processes {first} and {second} came with different {what} ({texts[0]} against {texts[other]}): "
        f"all processes of a sequence-parallel group need the same {what}, in the same order."
    )
