"""A device on the CPU that puts things off: what is put on its streams runs later, in any order that events allow.

Its memory is given back to the compute stream the moment the last tensor on it goes, and handed out again at once, as
torch's allocator for GPUs does. So a wait that is missing shows as a tensor with another one's values.
"""

from __future__ import annotations

import ctypes
import random
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(eq=False)
class Event:
    """Done when its stream has come to it."""

    done: bool = False


@dataclass(eq=False)
class Stream:
    """What is still to be done: functions, and events to wait for."""

    todo: deque[Callable[[], None] | Event] = field(default_factory=deque)


class LateStreams:
    """`Streams` whose work is done in pieces, at random.

    Args:
        seed: of the order.
        eager: everything at once instead, for tensors that are not of this device's memory.
    """

    def __init__(self, seed: int = 0, *, eager: bool = False) -> None:
        self.random, self.eager = random.Random(seed), eager
        self.compute = Stream()
        self.streams = [self.compute]
        self.synchronised = 0
        self.most = self.live = 0  # tensors of this device at once
        self._free: dict[int, list[np.ndarray]] = {}
        self._kept: list[Any] = []
        self._lock = RLock()

    # ---- what a lane asks for

    def new(self) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]

    def current(self) -> Stream:
        return self.compute

    def record(self, stream: Stream) -> Event:
        event = Event()
        self.put(stream, lambda: setattr(event, "done", True))
        return event

    def wait(self, stream: Stream, event: Event) -> None:
        self._add(stream, event)

    def synchronize(self, event: Event) -> None:
        self.synchronised += 1
        with self._lock:
            while not event.done:
                assert self._step(), "nothing that could run leads to the event"

    def copy(self, stream: Stream, target: Tensor, source: Tensor) -> None:
        assert target.is_contiguous()
        assert source.is_contiguous()
        to, of, size = target.data_ptr(), source.data_ptr(), source.nbytes
        assert target.nbytes == size
        self.put(stream, lambda: ctypes.memmove(to, of, size))

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        size = prod(shape) * dtype.itemsize
        with self._lock:
            free = self._free.setdefault(size, [])
            if not free:
                self._kept.append(np.zeros(size, dtype=np.uint8))
                free.append(self._kept[-1])
            block = free.pop()
            self.live += 1
            self.most = max(self.most, self.live)
        memory = np.frombuffer(block, dtype=np.uint8)  # lives as long as the tensors on it
        weakref.finalize(memory, self._give_back, block).atexit = False
        return torch.from_numpy(memory).view(dtype).view(shape)

    def pinned(self, size: int) -> Tensor:
        self._kept.append(torch.zeros(size, dtype=torch.uint8))
        return self._kept[-1]

    def enter(self) -> None:
        pass

    # ---- what a test asks for

    def put(self, stream: Stream, work: Callable[[], Any]) -> None:
        self._add(stream, work)

    def fill(self, tensor: Tensor, value: int) -> None:
        """The compute stream writes a byte's value everywhere."""
        to, size = tensor.data_ptr(), tensor.nbytes
        self.put(self.compute, lambda: ctypes.memset(to, value, size))

    def look(self, tensor: Tensor, found: list[set[int]]) -> None:
        """The compute stream reads all bytes: their values are added to `found`."""
        of, size = tensor.data_ptr(), tensor.nbytes
        self.put(self.compute, lambda: found.append(set(ctypes.string_at(of, size))))

    def run(self, steps: int | None = None) -> None:
        """As many steps of any streams; None is as many as there are."""
        with self._lock:
            while (steps is None or steps > 0) and self._step():
                steps = None if steps is None else steps - 1

    def _add(self, stream: Stream, work: Any) -> None:
        with self._lock:
            stream.todo.append(work)
            self.run(None if self.eager else self.random.choice((0, 0, 0, 1, 3)))

    def _step(self) -> bool:
        """One step of a stream that is not waiting; False where all are."""
        ready = [one for one in self.streams if one.todo and getattr(one.todo[0], "done", True)]
        if not ready:
            return False
        work = self.random.choice(ready).todo.popleft()
        if not isinstance(work, Event):
            work()
        return True

    def _give_back(self, block: np.ndarray) -> None:
        with self._lock:
            self.live -= 1
            self._free[block.nbytes].append(block)
