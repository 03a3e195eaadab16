"""Tensors on their way to a device: in one copy, for which nobody waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

HOST = torch.device("cpu")


def to_device(values: Any, device: torch.device | str) -> Tensor:
    """`values` on `device`; the same tensor where it is there already.

    From the CPU to a GPU it is copied from pinned memory and behind what the GPU still has to do: the CPU goes on at
    once. `torch.tensor(…, device="cuda")` would wait until the GPU has come that far. From a GPU it waits.

    Args:
        values: a tensor, a NumPy array, numbers.
        device: where they are needed.
    """
    tensor, device = torch.as_tensor(values), torch.device(device)
    if tensor.device != HOST:
        return tensor.to(device)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def move_together(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Tensors of one type on `device`, in one copy; as views of what was copied."""
    return views_of(to_device(joined(tensors), device), [tensor.shape for tensor in tensors])


def as_bits(numbers: Tensor) -> Tensor:
    """fp64 numbers as whole ones of the same bits, so that they travel with token ids; see `from_bits`."""
    return numbers.to(torch.float64).view(torch.int64)


def from_bits(bits: Tensor) -> Tensor:
    """The numbers that `as_bits` was given: fp64, or fp32 on a device that has no fp64 (Apple's MPS)."""
    if bits.device.type == "mps":
        return bits.to(HOST).view(torch.float64).to(torch.float32).to(bits.device)
    return bits.view(torch.float64)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """`[n]` all of their numbers, one tensor's behind the other's: `[[1, 2]]` and `[3]` are `[1, 2, 3]`."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def views_of(flat: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The tensors of these shapes that `joined` has put behind each other, as views of `flat`."""
    parts = flat.split([torch.Size(shape).numel() for shape in shapes])
    return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]
