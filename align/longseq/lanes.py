"""Between a device and host memory: copies that run while the device computes, and what has to wait for what.

Copies out have a stream of their own (streams.py), and so have copies back: both run beside the compute stream and
beside each other.

Memory of a GPU that the host lets go of is reused at once by what comes next on the compute stream. So a tensor stays
referenced until the compute stream has been told to wait for the end of its copy. That wait costs nothing where the
copy is through, and it is the same on every run; `Tensor.record_stream`, the other way, gives memory back when the
allocator happens to look, so that the peak differs from run to run.

Host memory for copies is pinned, which is slow to get (a GPU stops for it), and torch rounds it up to a power of two.
It is kept in slabs of 16 MiB, of which a tensor takes as many as it needs: rows of 131,072 and of 100,000 tokens share
them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Protocol

import torch
from torch import Tensor

from align.core.errors import UserError
from align.longseq.streams import DeviceStreams, Streams

SLAB = 2**24  # bytes


@dataclass(eq=False)
class HostCopy:
    """A tensor's bytes in host memory.

    Attributes:
        pieces: one after the other.
        slabs: what they lie in; empty where they are the tensor's own memory.
        source: what is copied, until it may go.
        compute: the stream that uses the source.
        done: after it all copies from and to the pieces have run.
    """

    pieces: list[Tensor]
    slabs: list[Slab] = field(default_factory=list)
    source: Tensor | None = None
    compute: Any = None
    done: Any = None


@dataclass(eq=False)
class Arrival:
    """A tensor on its way back to its device.

    Attributes:
        tensor: where its values will be; None on a CPU until they are there.
        shape, dtype: its own.
        compute: the stream that had the memory before, and will use the tensor.
        event: after it the memory may be written, and, once the copy is on its way, the values are there.
    """

    tensor: Tensor | None
    shape: torch.Size
    dtype: torch.dtype
    compute: Any = None
    event: Any = None


class Lane(Protocol):
    """The way of a device's tensors to host memory and back. Calls return at once but where they say that they wait."""

    def enter(self) -> None:
        """To be called first in a thread of one's own."""

    def out(self, tensor: Tensor) -> HostCopy:
        """Starts to copy what has been computed so far; the tensor must stay referenced until `let_go`."""

    def let_go(self, copy: HostCopy) -> None:
        """From now on the tensor's memory may be reused: what is computed next comes after the copy."""

    def read(self, copy: HostCopy) -> list[Tensor]:
        """Waits for the copy; its pieces, which the host may read then."""

    def room(self, size: int) -> HostCopy:
        """Waits for `size` bytes that the host may write."""

    def land(self, shape: torch.Size, dtype: torch.dtype) -> Arrival:
        """Memory on the device for a tensor on its way back; called where the device computes."""

    def back(self, copy: HostCopy, arrival: Arrival) -> None:
        """Starts to copy back what was let go, or what the host has written."""

    def arrive(self, arrival: Arrival) -> Tensor:
        """The tensor: what is computed with it next comes after the copy back."""

    def free(self, copy: HostCopy) -> None:
        """Gives host memory back; copies on their way from or to it still end."""


class CpuLane:
    """A tensor's own memory is its copy on the host, and what is read from the disk is the tensor."""

    def enter(self) -> None:
        """There is one CPU."""

    def out(self, tensor: Tensor) -> HostCopy:
        """Copies nothing but what is not contiguous."""
        return HostCopy([flat_bytes(tensor.contiguous())])

    def let_go(self, copy: HostCopy) -> None:
        """Whoever needs the memory still holds it."""

    def read(self, copy: HostCopy) -> list[Tensor]:
        """At once."""
        return copy.pieces

    def room(self, size: int) -> HostCopy:
        """Memory that will be the tensor's."""
        return HostCopy([torch.empty(size, dtype=torch.uint8)])

    def land(self, shape: torch.Size, dtype: torch.dtype) -> Arrival:
        """No memory: that of `room` will do."""
        return Arrival(None, shape, dtype)

    def back(self, copy: HostCopy, arrival: Arrival) -> None:
        """The host's memory is the tensor's."""
        arrival.tensor = copy.pieces[0].view(arrival.dtype).view(arrival.shape)

    def arrive(self, arrival: Arrival) -> Tensor:
        """As it is."""
        assert arrival.tensor is not None
        return arrival.tensor

    def free(self, copy: HostCopy) -> None:
        """Forgets it."""
        copy.pieces = []


@dataclass(eq=False)
class Slab:
    """Pinned host memory; `event` is when the last copy from or to it has run, None where none is on its way."""

    memory: Tensor
    event: Any = None


class StreamLane:
    """A device with streams: one for copies out, one for copies back, and pinned slabs.

    `out` of a layer's input of 100 MB takes 6 slabs and puts 6 copies on its stream, which start when the compute
    stream has made the input; `back` puts 6 on the other stream, which start when the compute stream has left the
    memory that they go to.

    Args:
        streams: the device's.
        slab: bytes of each.
    """

    def __init__(self, streams: Streams, *, slab: int = SLAB) -> None:
        self._streams, self._slab = streams, slab
        self._out, self._back = streams.new(), streams.new()
        self._free: deque[Slab] = deque()  # the longest free first
        self._slabs = 0
        self._lock = RLock()  # a finalizer may give slabs back in the thread that takes some

    def enter(self) -> None:
        """Puts the thread on the device."""
        self._streams.enter()

    def out(self, tensor: Tensor) -> HostCopy:
        """Copies into slabs, each when the last copy from or to it has run."""
        streams, compute = self._streams, self._streams.current()
        source = tensor.contiguous()
        size = source.numel() * source.element_size()
        copy = self._taken(size)
        copy.source, copy.compute = source, compute
        streams.wait(self._out, streams.record(compute))
        for slab in copy.slabs:
            if slab.event is not None:
                streams.wait(self._out, slab.event)
        for piece, part in zip(copy.pieces, flat_bytes(source).split(self._slab), strict=True):
            streams.copy(self._out, piece, part)
        copy.done = streams.record(self._out)
        return copy

    def let_go(self, copy: HostCopy) -> None:
        """The compute stream waits, not the host."""
        if copy.source is not None:
            self._streams.wait(copy.compute, copy.done)
            copy.source = None

    def read(self, copy: HostCopy) -> list[Tensor]:
        """The host waits."""
        self._streams.synchronize(copy.done)
        return copy.pieces

    def room(self, size: int) -> HostCopy:
        """The host waits for copies from or to the slabs."""
        copy = self._taken(size)
        for slab in copy.slabs:
            if slab.event is not None:
                self._streams.synchronize(slab.event)
        return copy

    def land(self, shape: torch.Size, dtype: torch.dtype) -> Arrival:
        """Memory of the compute stream, with what it waits for."""
        tensor, compute = self._streams.empty(shape, dtype), self._streams.current()
        # What used this memory before is on the compute stream, and has run at this event.
        return Arrival(tensor, shape, dtype, compute, self._streams.record(compute))

    def back(self, copy: HostCopy, arrival: Arrival) -> None:
        """Behind what used the memory before, and so behind the copy out, for which `let_go` made that wait."""
        assert arrival.tensor is not None
        streams = self._streams
        streams.wait(self._back, arrival.event)
        for piece, part in zip(copy.pieces, flat_bytes(arrival.tensor).split(self._slab), strict=True):
            streams.copy(self._back, part, piece)
        copy.done = arrival.event = streams.record(self._back)

    def arrive(self, arrival: Arrival) -> Tensor:
        """The compute stream waits, not the host."""
        assert arrival.tensor is not None
        self._streams.wait(arrival.compute, arrival.event)
        return arrival.tensor

    def free(self, copy: HostCopy) -> None:
        """Whoever takes the slabs next waits for their last copy."""
        with self._lock:
            for slab in copy.slabs:
                slab.event = copy.done
            self._free.extend(copy.slabs)
        copy.slabs, copy.pieces = [], []

    def _taken(self, size: int) -> HostCopy:
        """Slabs for `size` bytes; new ones only where none are free, so that there are as many as ever were used."""
        sizes = [min(self._slab, size - start) for start in range(0, size, self._slab)]
        with self._lock:
            slabs = [self._free.popleft() for _ in range(min(len(sizes), len(self._free)))]
            while len(slabs) < len(sizes):
                slabs.append(Slab(self._pinned()))
        return HostCopy([slab.memory[:part] for slab, part in zip(slabs, sizes, strict=True)], slabs)

    def _pinned(self) -> Tensor:
        try:
            memory = self._streams.pinned(self._slab)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            raise UserError(
                f"memory.offload found no more than {self._slabs * self._slab / 1e9:.1f} GB of host memory to pin for "
                "layers' inputs: set memory.offload=disk, or start fewer processes on this machine."
            ) from error
        self._slabs += 1
        return memory


def lane_of(device: torch.device) -> Lane:
    """The lane of a tensor's device.

    Raises:
        UserError: a device without streams.
    """
    if device.type == "cpu":
        return CpuLane()
    module = torch.get_device_module(device)
    if not hasattr(module, "Stream"):
        raise UserError(
            f"memory.offload copies beside the computation, which devices of type {device.type} cannot: "
            "set memory.offload=none."
        )
    return StreamLane(DeviceStreams(device, module))


def flat_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor of any type: `[n]` of bf16 are `[2 n]` of uint8, in the same memory."""
    return tensor.reshape(-1).view(torch.uint8)


def as_buffers(pieces: Sequence[Tensor]) -> list[memoryview]:
    """Pieces in host memory as what files are written from and read into."""
    return [piece.numpy().data for piece in pieces]
