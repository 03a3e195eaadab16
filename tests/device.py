"""A stand-in for a GPU on a machine without one: its tensors are told apart from the host's, and waits for it counted.

device = StandIn()
device.hold(model)                      # its parameters and buffers are on the device
with device:
    rows = batch.to(DEVICE)             # a copy on it, as from any host to any device
    loss = step(model, rows)
device.waits                            # what a GPU would have had to be waited for: ["item", "nonzero"]

A tensor is on the device if it was moved there, made there, or computed from one that is. All of them lie in the CPU's
memory and are computed by its kernels, in real numbers. What would fail on a GPU fails here: an operation on a tensor
of the device beside one of the host.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from align.longseq.merge import attention_parts

DEVICE = torch.device("cpu", 0)  # another device than torch.device("cpu"), by its number
HOST = torch.device("cpu")

# What has a result, or a size of one, that the host reads.
READ = {
    *("_local_scalar_dense", "equal", "nonzero", "nonzero_numpy", "masked_select", "bincount", "histc"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
}
# Of transformers, in rows through its own attention: whether the given mask hides anything.
LIBRARY = {"_ignore_causal_mask_sdpa"}
TO_HOST = {"cpu", "numpy", "tolist", "__array__"}
FROM_NUMBERS = {"tensor", "as_tensor", "asarray"}


_OURS = re.compile(r"/(align|losses)/")
_THIS = re.compile(r"/tests/device\.py|/torch/")


class StandIn:
    """The device; within `with` it is there.

    Attributes:
        waits: names of what waited for it so far, in order.
        places: where each of them was called from, for messages.
        copies: moves from the host, waited for or not.
        ours: those of `waits` that code of this project asked for itself.
        of_library: those of `LIBRARY`, which are not among `waits`.
    """

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.places: list[str] = []
        self.ours: list[str] = []
        self.copies = 0
        self.of_library: list[str] = []
        self._held: dict[int, StorageWeakRef] = {}
        self._modes = (_Operators(self), _Functions(self))
        self._silent = False
        self.busy = False  # within a function of its tensors

    def __enter__(self) -> StandIn:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._held

    def hold(self, values: Any) -> Any:
        """Takes tensors, or a module's, as tensors of the device; returns what it was given."""
        own = [*values.parameters(), *values.buffers()] if isinstance(values, nn.Module) else values
        for tensor in tensors_of(own):
            storage = StorageWeakRef(tensor.untyped_storage())
            self._held[storage.cdata] = storage  # which keeps the number from being used again
        return values

    def release(self, tensor: Tensor) -> Tensor:
        """Takes a tensor as one of the host."""
        self._held.pop(tensor.untyped_storage()._cdata, None)
        return tensor

    def wait(self, name: str) -> None:
        """Counts a wait."""
        if self._silent:
            return
        frames = [frame for frame in traceback.extract_stack() if not _THIS.search(frame.filename)]
        if frames[-1].name in LIBRARY:
            self.of_library.append(frames[-1].name)
            return
        self.waits.append(name)
        if _OURS.search(frames[-1].filename):
            self.ours.append(name)
        self.places.append(f"{name}: " + " < ".join(f"{f.name}:{f.lineno}" for f in frames[:-5:-1]))

    def read(self, name: str, function: Any, *args: Any) -> Any:
        """One wait, whatever the host reads in it."""
        self.wait(name)
        self._silent = True
        try:
            return function(*args)
        finally:
            self._silent = False


def tensors_of(values: Any) -> Iterator[Tensor]:
    """All tensors in nested values."""
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _running(file: str) -> bool:
    """Whether code of a file with this end of a name has led here."""
    return any(frame.filename.endswith(file) for frame in traceback.extract_stack())


class _Operators(TorchDispatchMode):
    """Sees every operator, autograd's and those in C++ too."""

    def __init__(self, device: StandIn) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, given = func._schema.name.partition("::")[2], list(tensors_of((args, kwargs)))
        here = [tensor in self.device for tensor in given]
        if not any(here):
            result = func(*args, **kwargs)
            if not given and (self.device.busy or torch._C._current_graph_task_id() != -1):
                self.device.hold(
                    result
                )  # made by a function of such tensors, or by autograd for want of a gradient
            return result
        if func.namespace == "c10d":
            return func(*args, **kwargs)
        self._judge(name, args, kwargs, given, here)
        if func is torch.ops.align.attention_parts.default:
            with self:  # what it consists of, too
                return self.device.hold(attention_parts._init_fn(*args, **kwargs))
        result = func(*args, **kwargs)
        if not (name == "copy_" and args[0] not in self.device):
            self.device.hold(result)
        return result

    def _judge(self, name: str, args: Any, kwargs: Any, given: list[Tensor], here: list[bool]) -> None:
        """Counts what waits, and refuses what fails."""
        apart = [tensor for tensor, held in zip(given, here, strict=True) if not held]
        if name == "copy_":
            if apart and not (len(args) > 2 and args[2]) and not _running("distributed_c10d.py"):
                self.device.wait(name)  # but for gloo's own, of what it has received
            return
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = list(tensors_of(args[1]))
            if any(each.dtype in (torch.bool, torch.uint8) for each in indices):
                self.device.wait(f"{name} by a mask")
            if any(each not in self.device for each in indices):
                self.device.wait(f"{name} by the host's numbers")
            apart = [tensor for tensor in apart if not any(tensor is each for each in indices)]
        elif name in READ and kwargs.get("output_size") is None:
            self.device.wait(name)
        if any(tensor.dim() for tensor in apart):
            raise AssertionError(f"{name} of a tensor of the device beside one of the host")


class _Functions(TorchFunctionMode):
    """Sees what is asked for by name: moves, and what a tensor's device is."""

    def __init__(self, device: StandIn) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        own = args[0] if args and isinstance(args[0], Tensor) else None
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return DEVICE if own in self.device else func(*args)
        if name == "to":
            return self._to(func, args, kwargs)
        if own is not None and own in self.device and name in TO_HOST:
            result = self.device.read(name, func, *args)
            return self.device.release(own.detach().clone()) if name == "cpu" else result
        if kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE:
            result = func(*args, **kwargs)
            if (own is not None and own not in self.device) or (own is None and name in FROM_NUMBERS):
                self.device.wait(f"{name} of the host's numbers")
                result = result.clone()
            return self.device.hold(result) if isinstance(result, Tensor) else result
        before = self.device.busy
        self.device.busy = any(tensor in self.device for tensor in tensors_of((args, kwargs)))
        try:
            return func(*args, **kwargs)
        finally:
            self.device.busy = before

    def _to(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """`Tensor.to`: the device is one of the arguments, or there is none."""
        tensor, *rest = args
        asked = [kwargs.get("device"), *rest[:1]]
        other = next((each for each in asked if isinstance(each, Tensor)), None)
        if other is not None:
            target = DEVICE if other in self.device else HOST
        else:
            named = [each for each in asked if isinstance(each, (torch.device, str))]
            target = torch.device(named[0]) if named else (DEVICE if tensor in self.device else HOST)
        result = func(*args, **kwargs)
        if (tensor in self.device) == (target == DEVICE) or _running("clip_grad.py"):
            return result  # clipping is told by C++, which knows no stand-in, where its gradients are
        if not (kwargs.get("non_blocking") and target == DEVICE):
            self.device.wait(f"to {'the device' if target == DEVICE else 'the host'}")
        self.device.copies += target == DEVICE
        copied = result.clone()
        return self.device.hold(copied) if target == DEVICE else self.device.release(copied)
