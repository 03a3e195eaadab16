"""Bytes that are alive, added up operation by operation, on tensors that may have shapes and no values."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


def _grouped_products(a: Tensor, b: Tensor, offs: Tensor, *others: Any, **more: Any) -> Tensor:
    """The shape of a grouped matrix product, which on the meta device is known for bf16 alone.

    Tokens `[S, H]` by experts `[E, H, I]` are `[S, I]`; tokens `[H, S]` by tokens `[S, I]`, grouped, `[E, H, I]`.
    """
    if a.dim() == 2 and b.dim() == 2:
        return a.new_empty(offs.shape[0], a.shape[0], b.shape[1])
    return a.new_empty(a.shape[-2], b.shape[-1])


class Live(TorchDispatchMode):
    """Adds up the bytes of tensors that operations make while it is on, each storage once, until they are gone.

    Args:
        left_out: numbers of elements of tensors that are not counted: weights, their gradients, their copies.

    Attributes:
        now, peak: bytes.
        instead: what is done in the place of operations that need values, or do not know the meta device.
    """

    instead: ClassVar[dict[Any, Callable[..., Any]]] = {torch.ops.aten._grouped_mm.default: _grouped_products}

    def __init__(self, left_out: set[int] | None = None) -> None:
        super().__init__()
        self.left_out = left_out or set()
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}

    def know(self, tensor: Tensor) -> None:
        """Leaves out a tensor that was there before."""
        storage = tensor.untyped_storage()
        self._seen[storage._cdata] = storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = self.instead.get(func, func)(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, output)
        return output

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._seen or size == 0 or tensor.numel() in self.left_out:
            return

        def gone(_: Any) -> None:
            self._seen.pop(address)
            self.now -= size

        self._seen[address] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class Called(Live):
    """The same for the forward that shows how layers are called: whatever the model asks of values is not so.

    The library asks whether positions jump, as in packed rows; its mask, which would follow from that, is not made.
    """

    instead: ClassVar[dict[Any, Callable[..., Any]]] = Live.instead | {
        torch.ops.aten._local_scalar_dense.default: lambda tensor: False
    }
