"""What processes have to agree on before they compute together: else they would hang, or train on nonsense."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from align.core.errors import UserError
from align.distributed.host import gather_numbers, host_group, several_processes


@dataclass(frozen=True)
class SameRows:
    """What the processes that share their rows have in common.

    Attributes:
        group: the processes.
        digest: 64 bits of their rows and settings, as a signed number.
    """

    group: dist.ProcessGroup
    digest: int

    def check(self, digests: Mapping[int, int]) -> None:
        """Compares the group's.

        Args:
            digests: of every process of the group at least, by its rank in the world.

        Raises:
            UserError: on every process of the group, naming two that differ.
        """
        first, *others = dist.get_process_group_ranks(self.group)
        for rank in others:
            if digests[rank] != digests[first]:
                shown = [f"{digests[each] % 2**64:016x}" for each in (first, rank)]
                raise UserError(_different(first, rank, *shown, what="rows"))


def agree_on_calls(
    model: nn.Module, calls: Sequence[tuple[int, ...]], *, same: SameRows | None = None
) -> list[tuple[int, ...]] | None:
    """How often every process calls the model, and the head (or a layer's tiles) within each call.

    Where a forward call runs collectives across the world, processes whose rows are packed differently would
    call the model or its head unequally often, and the one with more calls would wait for ever.

    One exchange on the host, for which no device is waited for; none where nothing has to be equal.

    Args:
        model: the policy as it is called, wrapped or not.
        calls: for each forward call of this process, how often each of several things is called in it: `(3, 40)` are 3
            slices of the head and 40 tokens that layers are tiled over. At least one call.
        same: what this process has to have in common with others, which is compared on the way.

    Returns:
        None where nothing has to be equal; else one entry for each forward call of the process with the most,
        each number the largest of all processes.

    Raises:
        UserError: processes that share rows came with different ones.
    """
    everyone = _forward_communicates(model)
    if not everyone and same is None:
        return None
    group = dist.group.WORLD if everyone or same is None else same.group
    assert group is not None
    own = [number for call in calls for number in call]
    found = gather_numbers([0 if same is None else same.digest, *own], group)
    if same is not None:
        ranks = dist.get_process_group_ranks(group)
        same.check({rank: numbers[0] for rank, numbers in zip(ranks, found, strict=True)})
    if not everyone:
        return None
    width = len(calls[0])
    of_each = [list(zip(*[iter(numbers[1:])] * width, strict=True)) for numbers in found]
    # A process without a call of its own here makes one that has each thing once.
    return [
        tuple(map(max, zip(*together, strict=True)))
        for together in zip_longest(*of_each, fillvalue=(1,) * width)
    ]


def _forward_communicates(model: nn.Module) -> bool:
    """Whether calling the model involves other processes: DDP sends buffers, FSDP2 and ZeRO-3 gather weights."""
    if not several_processes():
        return False
    if isinstance(model, DistributedDataParallel):
        return True
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def check_same_settings(settings: Mapping[str, Any]) -> None:
    """Compares settings over all processes: different ones would hang them, or spoil what they train.

    Args:
        settings: a configuration as nested mappings.

    Raises:
        UserError: on every process, naming two of them and the keys in which they differ.
    """
    if not several_processes():
        return
    own = _flat(settings)
    differing = _differing(dict(sorted(own.items())), dist.group.WORLD)
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


def check_agreement(value: Any, group: dist.ProcessGroup | None, *, what: str) -> None:
    """Every process of the group has to come with the same `value`, compared by its text.

    Args:
        value: settings, or what the data count.
        group: the processes that compare.
        what: `settings` or `data`, for the message.

    Raises:
        UserError: on every process of the group, naming two that differ.
    """
    differing = _differing(str(value), group)
    if differing is None:
        return
    other, texts = differing
    first, second = (dist.get_global_rank(group, rank) if group else rank for rank in (0, other))
    raise UserError(_different(first, second, texts[0], texts[other], what=what))


def _different(first: int, second: int, own: Any, other: Any, *, what: str) -> str:
    return (
        f"Processes {first} and {second} came with different {what} ({own} against {other}): "
        f"all processes that compute together need the same {what}, in the same order."
    )


def _differing(value: Any, group: dist.ProcessGroup | None) -> tuple[int, list[Any]] | None:
    """The first rank of the group whose value is not rank 0's, and every rank's; None where all agree.

    Hashes are compared first, so that agreement costs one small all-gather.
    """
    digest = hashlib.blake2b(repr(value).encode(), digest_size=8).digest()
    found = [numbers[0] for numbers in gather_numbers([int.from_bytes(digest, "big", signed=True)], group)]
    other = next((rank for rank, number in enumerate(found) if number != found[0]), None)
    if other is None:
        return None
    values: list[Any] = [None] * len(found)
    dist.all_gather_object(values, value, group=host_group(group))
    return other, values
