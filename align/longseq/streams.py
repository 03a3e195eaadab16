"""A device's streams and events: what runs beside what, and what waits for what.

A GPU works off what is put on one *stream* in order, and streams side by side. An *event* marks how far a stream is;
another stream can wait for it, and the host goes on meanwhile.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Streams(Protocol):
    """A device's streams, events, copies and memory; streams and events are whatever the device has."""

    def new(self) -> Any:
        """A stream beside the others."""

    def current(self) -> Any:
        """The stream on which this thread computes."""

    def record(self, stream: Any) -> Any:
        """An event: all that is on `stream` so far has run."""

    def wait(self, stream: Any, event: Any) -> None:
        """What is put on `stream` from now on runs after `event`; the host goes on."""

    def synchronize(self, event: Any) -> None:
        """Returns after `event`."""

    def copy(self, stream: Any, target: Tensor, source: Tensor) -> None:
        """Puts a copy on `stream`, of contiguous tensors of as many bytes; the host goes on."""

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Device memory, to be used on the stream on which this thread computes."""

    def pinned(self, size: int) -> Tensor:
        """`size` bytes of host memory that copies can go on beside the host."""

    def enter(self) -> None:
        """Puts a new thread on the device."""


class DeviceStreams:
    """The streams of a GPU.

    Args:
        device: with its index, as a tensor has it.
        module: `torch.cuda`, or what torch has in its place for the device.
    """

    def __init__(self, device: torch.device, module: Any) -> None:
        self._device, self._module = device, module

    def new(self) -> Any:
        """A stream of torch's pool."""
        return self._module.Stream(self._device)

    def current(self) -> Any:
        """Where this thread's kernels go."""
        return self._module.current_stream(self._device)

    def record(self, stream: Any) -> Any:
        """An event without timing."""
        return stream.record_event()

    def wait(self, stream: Any, event: Any) -> None:
        """The device waits."""
        stream.wait_event(event)

    def synchronize(self, event: Any) -> None:
        """The host waits."""
        event.synchronize()

    def copy(self, stream: Any, target: Tensor, source: Tensor) -> None:
        """One of both is pinned, so that the host need not wait."""
        with self._module.stream(stream):
            target.copy_(source, non_blocking=True)

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """From torch's allocator, which has it for the current stream."""
        return torch.empty(shape, dtype=dtype, device=self._device)

    def pinned(self, size: int) -> Tensor:
        """Page-locked."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def enter(self) -> None:
        """A new thread is on the first GPU, where every process would open a context of 300 MB and more."""
        torch.accelerator.set_device_index(self._device)
