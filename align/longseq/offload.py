"""Where checkpointed layer inputs wait for the backward pass: host memory or disk.

The host waits in the forward pass for files only, where the disk is slower than the computation: no more than
`prefetch` layers' inputs, and one at least, may wait to be written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.longseq.lanes import Arrival, as_buffers
from align.longseq.settings import DEFAULT_PREFETCH
from align.longseq.store import Place, Store


class HostStore(Store):
    """Pinned host memory, for tensors of a GPU. The host never waits, but while it pins what a first step needs."""

    def _put(self, place: Place) -> None:
        """Its copy stays where it is."""

    def _get(self, place: Place, arrival: Arrival) -> None:
        place.lane.back(place.copy, arrival)

    def _forget(self, places: list[Place]) -> None:
        for place in places:
            place.abandon()
            place.abandon_arrival()
            place.lane.free(place.copy)


class DiskStore(Store):
    """One file without a name: the system removes it with the process, however that ends.

    A thread writes and reads. From and to a GPU it goes through pinned memory, by the same copies as `HostStore`'s.

    Args:
        folder: on the disk to use; None is Python's temporary folder.
        prefetch, lanes: as `Store`'s.
    """

    def __init__(self, folder: Path | None = None, **ways: Any) -> None:
        super().__init__(**ways)
        self.folder = Path(tempfile.gettempdir()) if folder is None else folder
        try:
            self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115 - lives as long as we do
        except OSError as error:
            raise UserError(
                f"memory.offload_folder={self.folder} cannot be written ({error.strerror}): name another folder."
            ) from error
        # One: what it is given is done in order, so that a place is written before it is read or given back.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="offload")
        self._used: dict[int, int] = {}  # offset → bytes; the thread's

    def _put(self, place: Place) -> None:
        place.written = self._thread.submit(self._write, place)

    def _get(self, place: Place, arrival: Arrival) -> None:
        place.filled = self._thread.submit(self._read, place, arrival)

    def _forget(self, places: list[Place]) -> None:
        for place in places:
            place.abandon()
        with contextlib.suppress(RuntimeError):  # at the end of the process there is no thread any more
            self._thread.submit(self._release, places)

    def _write(self, place: Place) -> None:
        """In the thread: puts a copy away."""
        place.lane.enter()
        try:
            pieces = as_buffers(place.lane.read(place.copy))
            offset = place.offset = self._reserve(sum(len(piece) for piece in pieces))
            for piece in pieces:
                self._write_piece(piece, offset)
                offset += len(piece)
        finally:
            place.lane.free(place.copy)

    def _write_piece(self, data: memoryview, offset: int) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file.fileno(), data[written:], offset + written)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError(
                f"memory.offload_folder={self.folder} is full: the checkpoints of a step need more than the "
                f"{(offset + written) / 1e9:.1f} GB that were free; name a folder with more room."
            ) from error

    def _read(self, place: Place, arrival: Arrival) -> None:
        """In the thread: reads into host memory and starts the copy to the device."""
        lane, offset = place.lane, place.offset
        assert offset is not None
        lane.enter()
        copy = lane.room(self._used[offset])
        for data in as_buffers(copy.pieces):
            read = 0
            while read < len(data):
                count = os.preadv(self._file.fileno(), [data[read:]], offset + read)
                if count == 0:
                    raise RuntimeError("the file of offloaded checkpoints has become shorter")
                read += count
            offset += len(data)
        lane.back(copy, arrival)
        lane.free(copy)

    def _reserve(self, size: int) -> int:
        """Byte at which the next tensor is written: behind all that are there, as the last to come goes first.

        With 100 bytes at 0 and 50 at 100 it is 150; when the latter has gone, 100.
        """
        offset = max((start + length for start, length in self._used.items()), default=0)
        self._used[offset] = size
        return offset

    def _release(self, places: list[Place]) -> None:
        """In the thread, behind all that was to be done with them."""
        for place in places:
            place.lane.enter()
            place.abandon_arrival()
            if place.offset is not None:
                del self._used[place.offset]
        if not self._used:
            os.ftruncate(self._file.fileno(), 0)


def make_store(offload: str, folder: str | None, *, prefetch: int = DEFAULT_PREFETCH) -> Store | None:
    """The store that `memory.offload` names: None for `none`, else `host` or `disk`."""
    if offload == "none":
        return None
    if offload == "host":
        return HostStore(prefetch=prefetch)
    return DiskStore(None if folder is None else Path(folder), prefetch=prefetch)
