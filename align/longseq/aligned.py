"""Tensors as GPU kernels read them: dense in the last dimension, every row at a multiple of 16 bytes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

NUMBERS = 8  # a head's width is padded to a multiple of it, as torch and flash-attn do
_BYTES = 16  # what one load of a kernel takes


def aligned(states: Tensor) -> Tensor:
    """`[…, D]` → `[…, D′]`: zeros up to a multiple of 8, which change no score (a width of 60 becomes 64).

    Where it lies as kernels read it, nothing is copied: a slice of tokens or heads of such a tensor is one, too. What
    is transposed in its last dimensions, expanded, or begins between two multiples of 16 bytes is copied.
    """
    missing = -states.shape[-1] % NUMBERS
    if missing:
        return pad(states, (0, missing))
    return states if _readable(states) else states.clone(memory_format=torch.contiguous_format)


def _readable(states: Tensor) -> bool:
    *rows, last = states.stride()
    numbers = _BYTES // states.element_size()
    steps = [step for step, size in zip(rows, states.shape[:-1], strict=True) if size > 1]
    return last == 1 and all(
        step and step % numbers == 0 for step in (*steps, states.storage_offset() or numbers)
    )
