"""Checkpointed layer inputs out of the way until the backward pass needs them: to host memory or to disk.

With 32 layers the inputs of the layers 0 … 31 go out one by one in the forward pass and come back as 31 … 0.
A tensor is handed to a thread that copies or writes it while the next layer computes (write-behind, at most one
at a time, so that no more than one waits in memory). The backward pass takes tensors in the opposite order;
while it works on one, the thread reads the one before it from the disk. From host memory there is nothing to read: that
tensor is copied when it is asked for, on the stream that computes, which waits for it.
"""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from align.core.errors import UserError

# Bytes: what is smaller stays where it is.
SMALLEST = 4096


class Stored:
    """What autograd keeps in the place of a tensor that was moved to host memory or to disk.

    When autograd lets go of it, after the backward pass of its layer, its place there is free again: the input of a
    layer of 16,384 tokens and 4,096 numbers in bf16 gives back 134 MB.

    Attributes:
        tensor: the tensor itself until it has been written; then None.
        writing: done when it has been written.
        reading: its values on the way back; None while nobody has asked.
        previous: the one that was moved before it, which the backward pass needs next.
    """

    def __init__(self, tensor: Tensor, previous: Stored | None) -> None:
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device
        # Until it is written the tensor stays here, and reading it costs nothing.
        self.tensor: Tensor | None = tensor
        self.writing: Future[Any] | None = None
        self.reading: Future[Tensor] | None = None
        self.previous = None if previous is None else weakref.ref(previous)


class Store(ABC):
    """Moves what autograd saves elsewhere, and brings it back; `hooks` makes autograd use it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="offload", initializer=_on_device, initargs=(_device_index(),)
        )
        self._last: weakref.ref[Stored] | None = None
        self._streams: dict[torch.device, Any] = {}

    def hooks(self) -> saved_tensors_hooks:
        """Within this context what autograd saves goes through the store."""
        return saved_tensors_hooks(self.pack, self.unpack)

    def pack(self, tensor: Tensor) -> Stored | Tensor:
        """Sends a tensor away; a small one is returned as it is.

        Raises:
            UserError: an earlier tensor did not fit.
        """
        if tensor.numel() * tensor.element_size() < SMALLEST:
            return tensor
        previous = None if self._last is None else self._last()
        if previous is not None and previous.writing is not None:
            previous.writing.result()
        stored = Stored(tensor.detach(), previous)
        module, event = _device_module(tensor.device), None
        if module is not None:
            event = module.current_stream(tensor.device).record_event()
        stored.writing = self._thread.submit(self._write, stored, event)
        self._last = weakref.ref(stored)
        return stored

    def unpack(self, stored: Stored | Tensor) -> Tensor:
        """Brings a tensor back to its device, and starts to fetch the one that was sent before it."""
        if isinstance(stored, Tensor):
            return stored
        tensor = stored.tensor
        if tensor is None:
            self._start_reading(stored)
            assert stored.reading is not None
            tensor = stored.reading.result().to(stored.device, non_blocking=True)
            stored.reading = None
        elif stored.writing is not None and stored.writing.done():
            stored.writing.result()  # where writing failed, say so
        previous = None if stored.previous is None else stored.previous()
        if previous is not None:
            self._start_reading(previous)
        return tensor

    def _start_reading(self, stored: Stored) -> None:
        if stored.reading is None:
            if stored.writing is not None:
                stored.writing.result()
            stored.reading = self._thread.submit(self._get, stored)

    def _write(self, stored: Stored, event: Any) -> None:
        """In the thread: what was computed until `event` is copied to the host and put away."""
        tensor = stored.tensor
        assert tensor is not None
        version = tensor._version
        self._put(stored, self._to_host(tensor, event))
        if tensor._version != version:
            raise RuntimeError("a layer's input was changed in place while it was being offloaded")
        stored.tensor = None

    def _to_host(self, tensor: Tensor, event: Any) -> Tensor:
        """Contiguous, in host memory; from a GPU over pinned memory and a stream of its own."""
        module = _device_module(tensor.device)
        if module is None:
            return tensor.contiguous()
        if tensor.device not in self._streams:
            self._streams[tensor.device] = module.Stream(tensor.device)
        stream = self._streams[tensor.device]
        with module.stream(stream):
            stream.wait_event(event)
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            stream.synchronize()
        return host

    @abstractmethod
    def _put(self, stored: Stored, host: Tensor) -> None:
        """In the thread: keeps a contiguous host tensor."""

    @abstractmethod
    def _get(self, stored: Stored) -> Tensor:
        """In the thread: the same values in host memory."""


def _device_index() -> int | None:
    """The accelerator that this thread computes on; None where there is none."""
    return torch.accelerator.current_device_index() if torch.accelerator.is_available() else None


def _on_device(index: int | None) -> None:
    """A new thread is on the first accelerator; there every process would open a context, 300 MB and more."""
    if index is not None:
        torch.accelerator.set_device_index(index)


def _device_module(device: torch.device) -> Any:
    """`torch.cuda` and the like; None for the CPU."""
    return None if device.type == "cpu" else torch.get_device_module(device)


class HostStore(Store):
    """Pinned host memory, for tensors of a GPU."""

    def _put(self, stored: Stored, host: Tensor) -> None:
        # A CPU tensor is its own host copy: only tests come with one.
        stored.host = host.clone() if stored.device.type == "cpu" else host  # type: ignore[attr-defined]

    def _get(self, stored: Stored) -> Tensor:
        return stored.host  # type: ignore[attr-defined]


class DiskStore(Store):
    """One file without a name: the system removes it with the process, however that ends.

    Args:
        folder: on the disk to use; None is Python's temporary folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.folder = Path(tempfile.gettempdir()) if folder is None else folder
        try:
            self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115 - lives as long as we do
        except OSError as error:
            raise UserError(
                f"memory.offload_folder={self.folder} cannot be written ({error.strerror}): name another folder."
            ) from error
        self._lock = RLock()
        self._used: dict[int, int] = {}  # offset → bytes

    def _put(self, stored: Stored, host: Tensor) -> None:
        data = _bytes(host)
        offset = self._reserve(len(data))
        weakref.finalize(stored, self._release, offset)
        stored.offset = offset  # type: ignore[attr-defined]
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file.fileno(), data[written:], offset + written)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError(
                f"memory.offload_folder={self.folder} is full: the checkpoints of a step need more than the "
                f"{(offset + written) / 1e9:.1f} GB that were free; name a folder with more room."
            ) from error

    def _get(self, stored: Stored) -> Tensor:
        host = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=stored.device.type != "cpu")
        data, offset = _bytes(host), stored.offset  # type: ignore[attr-defined]
        read = 0
        while read < len(data):
            count = os.preadv(self._file.fileno(), [data[read:]], offset + read)
            if count == 0:
                raise RuntimeError("the file of offloaded checkpoints has become shorter")
            read += count
        return host

    def _reserve(self, size: int) -> int:
        """Byte at which the next tensor is written: behind all that are there, as the last to come goes first.

        With 100 bytes at 0 and 50 at 100 it is 150; when the latter has gone, 100.
        """
        with self._lock:
            offset = max((start + length for start, length in self._used.items()), default=0)
            self._used[offset] = size
            return offset

    def _release(self, offset: int) -> None:
        with self._lock:
            del self._used[offset]
            if not self._used:
                os.ftruncate(self._file.fileno(), 0)


def _bytes(host: Tensor) -> memoryview:
    """The memory of a contiguous host tensor of any type."""
    return host.reshape(-1).view(torch.uint8).numpy().data


def make_store(offload: str, folder: str | None) -> Store | None:
    """The store that `memory.offload` names: None for `none`, else `host` or `disk`."""
    if offload == "none":
        return None
    if offload == "host":
        return HostStore()
    return DiskStore(None if folder is None else Path(folder))
