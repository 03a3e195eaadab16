"""A GPU that is not there: tensors with a CUDA device, shapes, types and strides, and no numbers.

torch's fake tensors follow every operator by its shape function and refuse what mixes devices. A build without CUDA
still asks for a GPU where Python indexes a tensor, copies into one or moves one; here these three go another way to the
same operators. Autograd asks for one, too: so all runs without it, and gradients by their own functions.

with FakeCuda():
    states = torch.empty(1, 4, 10, 64, device="cuda")
    states[..., :8].device             # cuda:0
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode


class FakeCuda:
    """The context in which `device="cuda"` makes tensors without numbers."""

    def __enter__(self) -> None:
        self._grad, self._fake, self._ways = torch.no_grad(), FakeTensorMode(), _Ways()
        for context in (self._grad, self._fake, self._ways):
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in (self._ways, self._fake, self._grad):
            context.__exit__(*error)


class _Ways(TorchFunctionMode):
    """Sends indexing, copies and moves to operators that a fake tensor takes."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.__getitem__ and args[0].device.type == "cuda":
            return _taken(*args)
        if function is Tensor.__setitem__ and args[0].device.type == "cuda":
            value = args[2] if isinstance(args[2], Tensor) else torch.full((), args[2], device="cuda")
            torch.ops.aten.copy_(_taken(*args[:2]), value)
            return None
        if function is Tensor.pin_memory:
            return args[0]
        if function is Tensor.contiguous and args[0].device.type == "cuda":
            return (
                args[0] if args[0].is_contiguous() else args[0].clone(memory_format=torch.contiguous_format)
            )
        if function is Tensor.copy_ and args[0].device.type == "cuda":
            return torch.ops.aten.copy_(*args)
        if function is Tensor.to and "cuda" in {
            str(each).split(":")[0] for each in (*args[1:], *kwargs.values())
        }:
            return _moved(*args, **kwargs)
        return function(*args, **kwargs)


def _moved(states: Tensor, *how: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
    dtype = next((each for each in how if isinstance(each, torch.dtype)), dtype)
    return torch.empty_strided(states.shape, states.stride(), dtype=dtype or states.dtype, device="cuda")


def _taken(states: Tensor, index: Any) -> Tensor:
    """`states[index]` by narrow, select and the like."""
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [each for each in index if not isinstance(each, Tensor)]:
        at = next(n for n, each in enumerate(index) if each is Ellipsis)
        named = sum(each is not None for each in index) - 1
        index = (*index[:at], *[slice(None)] * (states.dim() - named), *index[at + 1 :])
    dim = 0
    for each in index:
        if each is None:
            states, dim = states.unsqueeze(dim), dim + 1
        elif isinstance(each, slice):
            start, stop, step = each.indices(states.shape[dim])
            states, dim = torch.ops.aten.slice(states, dim, start, max(start, stop), step), dim + 1
        elif isinstance(each, int):
            states = states.select(dim, each)
        else:
            assert isinstance(each, Tensor) and each.dtype == torch.long and each.dim() == 1
            states, dim = torch.ops.aten.index(states, [*[None] * dim, each]), dim + 1
    return states
