"""What autograd saves within a block goes through a store: sent away layer by layer, fetched in the opposite order.

With 32 layers the inputs of the layers 0 … 31 go out one by one in the forward pass and come back as 31 … 0. Where they
wait is a store's own matter (offload.py), and how they get there that of a lane (lanes.py); both work beside the
computation. With a `prefetch` of 1 the input of layer 5 is copied out while layer 5 computes, and its memory is given
back when layer 6 starts. In the backward pass, while layer 6 works, the input of layer 5 comes back. With a `prefetch`
of 2 that of layer 4 comes too; and the inputs of the last two layers never leave, as they are needed first.
"""

from __future__ import annotations

import contextlib
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from align.longseq.lanes import Arrival, HostCopy, Lane, lane_of
from align.longseq.settings import DEFAULT_PREFETCH

# Bytes: what is smaller stays where it is.
SMALLEST = 4096


@dataclass(eq=False)
class Place:
    """Where a tensor is that was sent away.

    Attributes:
        lane: of its device.
        shape, dtype: its own.
        tensor: itself, until its memory is given back; then None.
        version: counts changes in place.
        copy: in host memory; on the disk's account only until it is written.
        written: done when it is in the file; None without one.
        offset: where in the file.
        arrival: on its way back; None while nobody has asked.
        filled: done when what was in the file is on that way; None without one.
    """

    lane: Lane
    shape: torch.Size
    dtype: torch.dtype
    tensor: Tensor | None
    version: int
    copy: HostCopy
    written: Future[Any] | None = None
    offset: int | None = None
    arrival: Arrival | None = None
    filled: Future[Any] | None = None

    def unchanged(self) -> None:
        """Refuses a tensor that was written over while it was copied."""
        if self.tensor is not None and self.tensor._version != self.version:
            raise RuntimeError("a layer's input was changed in place while it was being offloaded")

    def let_go(self) -> None:
        """Gives the tensor's memory back, once it is written where it goes to a file.

        Raises:
            UserError: it did not fit there.
        """
        if self.tensor is None:
            return
        if self.written is not None:
            self.written.result()
        self.unchanged()
        self.lane.let_go(self.copy)
        self.tensor = None

    def abandon(self) -> None:
        """Drops what has never left the device; its copy out still ends."""
        if self.tensor is not None:
            self.lane.let_go(self.copy)
            self.tensor = None

    def abandon_arrival(self) -> None:
        """Drops what is on its way back, which nobody has asked for; that copy still ends, too."""
        if self.arrival is not None:
            self.lane.arrive(self.arrival)
            self.arrival = None


class Sent:
    """The tensors of one layer, which go and come back together; most layers have one.

    When autograd lets go of all of them, after the backward pass of the layer, their place is free again: the input of
    a layer of 16,384 tokens and 4,096 numbers in bf16 gives back 134 MB.

    Attributes:
        places: where they are.
        previous: those that were sent before, which the backward pass needs next.
    """

    def __init__(self, previous: Sent | None) -> None:
        self.places: list[Place] = []
        self.previous = None if previous is None else weakref.ref(previous)

    def before(self, count: int) -> Iterator[Sent]:
        """Up to `count` that were sent before it, the last first."""
        sent: Sent | None = self
        for _ in range(count):
            sent = None if sent is None or sent.previous is None else sent.previous()
            if sent is None:
                return
            yield sent


@dataclass(frozen=True, eq=False)
class Stored:
    """What autograd keeps in the place of a tensor that was sent away."""

    sent: Sent
    place: Place


class Store(ABC):
    """Moves what autograd saves elsewhere, and brings it back; `hooks` makes autograd use it.

    Args:
        prefetch: how many layers' tensors are on their way back before they are asked for; as many, and one at least,
            stay on the device until the next layer sends its own.
        lanes: of each device, made when its first tensor comes: a process that has not been put on its GPU yet would
            otherwise work on the first.
    """

    def __init__(
        self, *, prefetch: int = DEFAULT_PREFETCH, lanes: Callable[[torch.device], Lane] = lane_of
    ) -> None:
        self._prefetch, self._lane_of = prefetch, lanes
        self._lanes: dict[torch.device, Lane] = {}
        self._open: Sent | None = None
        self._last: weakref.ref[Sent] | None = None
        self._here: deque[weakref.ref[Sent]] = deque()

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Within this context what autograd saves goes through the store, as the tensors of one layer."""
        self._open = None
        with saved_tensors_hooks(self.pack, self.unpack):
            yield
        self._open = None

    def pack(self, tensor: Tensor) -> Stored | Tensor:
        """Sends a tensor away; a small one is returned as it is.

        Raises:
            UserError: an earlier tensor did not fit.
        """
        if tensor.numel() * tensor.element_size() < SMALLEST:
            return tensor
        if self._open is None:
            self._open = self._begin()
        if tensor.device not in self._lanes:
            self._lanes[tensor.device] = self._lane_of(tensor.device)
        lane = self._lanes[tensor.device]
        kept = tensor.detach()
        place = Place(lane, kept.shape, kept.dtype, kept, kept._version, lane.out(kept))
        self._open.places.append(place)
        self._put(place)
        return Stored(self._open, place)

    def _begin(self) -> Sent:
        """A layer starts: earlier ones that had time to be copied give their memory back."""
        sent = Sent(None if self._last is None else self._last())
        weakref.finalize(sent, self._forget, sent.places).atexit = False
        self._last = weakref.ref(sent)
        self._here.append(self._last)
        while len(self._here) > max(1, self._prefetch):
            earlier = self._here.popleft()()
            for place in [] if earlier is None else earlier.places:
                place.let_go()
        return sent

    def unpack(self, stored: Stored | Tensor) -> Tensor:
        """Brings a tensor back to its device, and starts to fetch those that were sent before it."""
        if isinstance(stored, Tensor):
            return stored
        tensor = self._bring(stored.place)
        for sent in stored.sent.before(self._prefetch):
            for place in sent.places:
                self._start(place)
        return tensor

    def _bring(self, place: Place) -> Tensor:
        if place.tensor is not None:
            if place.written is not None and place.written.done():
                place.written.result()  # where writing failed, say so
            place.unchanged()
            return place.tensor
        self._start(place)
        arrival, place.arrival = place.arrival, None
        assert arrival is not None
        if place.filled is not None:
            place.filled.result()
        return place.lane.arrive(arrival)

    def _start(self, place: Place) -> None:
        if place.tensor is None and place.arrival is None:
            place.arrival = place.lane.land(place.shape, place.dtype)
            self._get(place, place.arrival)

    @abstractmethod
    def _put(self, place: Place) -> None:
        """Keeps what is being copied out."""

    @abstractmethod
    def _get(self, place: Place, arrival: Arrival) -> None:
        """Starts to bring it back."""

    @abstractmethod
    def _forget(self, places: list[Place]) -> None:
        """Nobody will ask again. Called from wherever the last reference goes, so it must not wait."""
