"""Reference log-probs on disk: computed once for a row, then read by every run that asks for the same key.

FOLDER/logps/*.jsonl   one line a row: {"key": …, "logps": [chosen, rejected…], "check": …} (entries.py)
FOLDER/models/*.json   what each reference was, for people who ask why something was computed again
FOLDER/files/*.json    hashes of weight files (models/identity.py)

A process appends to a segment of its own and reads everybody's, so any number of processes may fill one folder
at once, without locks that a kill would leave behind. A line counts when its check value fits: what a kill cut
off or a disk damaged is computed again. Numbers are written so that they read back bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from align.core.errors import UserError
from align.core.files import write_atomically
from align.distributed.host import several_processes, sum_numbers
from align.longseq.logps import sum_dtype
from align.longseq.moving import to_device
from align.longseq.shared_prefix import SharedPrefixBatch, SharedPrefixRow
from align.models.identity import Identity
from align.reference.entries import to_logps, to_table, widths_of, with_absent, without_absent
from align.reference.key import row_keys
from align.reference.sources import AdapterOff, Frozen, ReferenceUsage
from losses.types import PairLogps

logger = logging.getLogger(__name__)

Logps = tuple[float, ...]

QUIET = 4  # times in a row that a segment has gained nothing, after which it is looked at by turns only
IDLE_AT_ONCE = 16  # of these, looked at each time
SETTLED = 2.0  # seconds; a file system may count its times of change in whole ones


def check_folder(folder: Path) -> None:
    """Creates the cache's folder where it does not exist.

    Raises:
        UserError: it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"reference.cache={folder} cannot be used ({error.strerror}): name a folder that can be written."
        ) from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"reference.cache={folder} cannot be written: name another folder.")


class LogpStore:
    """Log-probs by key, in memory and in the segments of a folder.

    Args:
        folder: the cache's folder; see `check_folder`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "logps"
        self._known: dict[str, Logps] = {}
        self._read: dict[Path, tuple[int, int]] = {}  # segment → bytes and lines read so far
        self._busy: dict[Path, int] = {}  # segment → how often in a row it had gained nothing
        self._idle: deque[Path] = deque()  # segments that gain nothing, the longest unseen first
        self._listed = (-1, 0.0)  # the folder's time of change, and ours, when its files were listed
        self._segment = self.folder / f"{uuid.uuid4().hex}.jsonl"
        check_folder(folder)
        self.folder.mkdir(exist_ok=True)
        self.refresh()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Logps | None:
        """The numbers of an entry, or None."""
        return self._known.get(key)

    def add(self, entries: Mapping[str, Logps]) -> None:
        """Remembers entries and appends them to this process's segment, which only it writes."""
        if not entries:
            return
        self._known.update(entries)
        lines = "".join(_line(key, logps) for key, logps in entries.items()).encode()
        with self._segment.open("ab") as stream:
            stream.write(lines)
        size, count = self._read.get(self._segment, (0, 0))
        self._read[self._segment] = (size + len(lines), count + len(entries))

    def refresh(self) -> None:
        """Takes in what other processes have written since the last time.

        Most segments of an old folder are those of runs that ended. So only a few of those that gain nothing are
        looked at each time, by turns; what a late one gains is computed again until its turn comes.
        """
        self._list()
        turn = [self._idle.popleft() for _ in range(min(IDLE_AT_ONCE, len(self._idle)))]
        for path in (*self._busy, *turn):
            quiet = 0 if self._take_in(path) else self._busy.get(path, QUIET) + 1
            self._busy.pop(path, None)
            if quiet < QUIET:
                self._busy[path] = quiet
            else:
                self._idle.append(path)

    def _list(self) -> None:
        """Finds new segments; the folder's time of change says whether there are any, but for the last seconds."""
        changed, now = self.folder.stat().st_mtime_ns, time.monotonic()
        if changed == self._listed[0] and now - self._listed[1] > SETTLED:
            return
        if changed != self._listed[0]:
            self._listed = (changed, now)
        for path in sorted(self.folder.glob("*.jsonl")):
            if path not in self._read:
                self._read[path] = (0, 0)
                self._busy[path] = 0

    def _take_in(self, path: Path) -> bool:
        """Reads the lines that a segment has gained; its last one may be half written, and is left for the next time.

        Of 200 bytes that end in the middle of a line which began at 180, the first 180 are taken.

        Returns:
            Whether it has gained any bytes.
        """
        size, count = self._read[path]
        try:
            if path.stat().st_size <= size:
                return False
        except FileNotFoundError:  # somebody has cleared the cache; what was read is known
            return False
        with path.open("rb") as stream:
            stream.seek(size)
            content = stream.read()
        content = content[: content.rfind(b"\n") + 1]
        lines = content.split(b"\n")[:-1]
        damaged = []
        for number, line in enumerate(lines, start=count + 1):
            entry = _parse(line)
            if entry is None:
                damaged.append(str(number))
            else:
                self._known.setdefault(*entry)
        self._read[path] = (size + len(content), count + len(lines))
        if damaged:
            logger.warning(
                "%s is damaged in line %s: what stood there is computed again.", path, ", ".join(damaged)
            )
        return True


def _line(key: str, logps: Logps) -> str:
    return json.dumps({"key": key, "logps": logps, "check": _check(key, logps)}) + "\n"


def _check(key: str, logps: Sequence[float]) -> str:
    """Check value of an entry; `repr` names a float exactly."""
    return hashlib.blake2b(f"{key} {list(logps)!r}".encode(), digest_size=8).hexdigest()


def _parse(line: bytes) -> tuple[str, Logps] | None:
    """Key and log-probs of a line; None for a damaged one."""
    try:
        entry = json.loads(line)
        logps = tuple(float(value) for value in entry["logps"])
        return (entry["key"], logps) if entry["check"] == _check(entry["key"], logps) else None
    except (ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Cached:
    """A reference behind the cache: it runs only on packed rows that hold a prompt without an entry.

    With several processes one missing entry anywhere lets all of them run, so that they meet in the collectives
    of a wrapped or sharded forward.

    Attributes:
        live: the reference that computes.
        store: the cache.
        identity: what `live` is.
    """

    live: AdapterOff | Frozen
    store: LogpStore
    identity: Identity

    @property
    def usage(self) -> ReferenceUsage:
        """What was computed and what came from the cache."""
        return self.live.usage

    def __call__(self, policy: nn.Module, batch: SharedPrefixBatch) -> PairLogps:
        """Reference log-probs of the batch, without a graph, as a live one's."""
        keys = [row_keys(row, self.identity) for row in batch.rows]
        run = _agree(self._missing(keys))
        fresh = self._compute(policy, batch, keys, run) if any(run) else None
        taken, sums = 0, []
        for row, row_key, computed in zip(batch.rows, keys, run, strict=True):
            if computed and fresh is not None:
                sums.append(fresh[taken : taken + len(row_key)])
                taken += len(row_key)
            else:
                sums.append(self._stored(row, row_key, widths_of(batch)))
                self.usage.cached += len(row_key)
        return to_logps(torch.cat(sums), batch)

    def _missing(self, rows: Sequence[Sequence[str]]) -> list[bool]:
        """Of each row, whether a key has no entry, neither here nor in what others have written meanwhile."""
        if any(self.store.get(key) is None for keys in rows for key in keys):
            self.store.refresh()
        return [any(self.store.get(key) is None for key in keys) for keys in rows]

    def _compute(
        self, policy: nn.Module, batch: SharedPrefixBatch, keys: list[list[str]], run: list[bool]
    ) -> Tensor:
        """`[b, n]` numbers of the rows to run (entries.py); those without an entry are added to the store."""
        chosen = [i for i, wanted in enumerate(run) if wanted]
        rows = tuple(batch.rows[i] for i in chosen)
        table = to_table(self.live(policy, batch if all(run) else SharedPrefixBatch(rows)))
        absent = [count for row in rows for count in _absent(row)]
        flat, widths = [key for i in chosen for key in keys[i]], widths_of(batch)
        new = {
            key: without_absent(values, widths, count)
            for key, values, count in zip(flat, table.tolist(), absent, strict=True)
            if self.store.get(key) is None
        }
        finite = {key: values for key, values in new.items() if all(map(math.isfinite, values))}
        if len(finite) < len(new):
            logger.warning(
                "The reference gave %d rows a log-prob that is not finite; they are not put into the cache.",
                len(new) - len(finite),
            )
        self.store.add(finite)
        return table

    def _stored(self, row: SharedPrefixRow, keys: Sequence[str], widths: dict[str, int]) -> Tensor:
        """`[b, n]` numbers of a row from the store; 0 for answers that a prompt does not have.

        Two prompts with 3 and 2 answers: `[[−7, −9, −8], [−5, −6, 0]]`.
        """
        entries = [self.store.get(key) or () for key in keys]
        padded = [
            with_absent(entry, widths, absent) for entry, absent in zip(entries, _absent(row), strict=True)
        ]
        device = row.input_ids.device
        return to_device(torch.tensor(padded, dtype=sum_dtype(device)), device)


def _absent(row: SharedPrefixRow) -> list[int]:
    """How many answers each prompt of a row has fewer than the batch's longest."""
    return [row.lengths.shape[1] - len(packed.answers) for packed in row.layout.prompts]


def _agree(missing: list[bool]) -> list[bool]:
    """Which rows to run: those with a missing entry; where several processes run together all of them, or none.

    Of rows `[True, False]` one process runs the first. Beside a process that misses none, both run both of theirs.
    """
    if not several_processes():
        return missing
    return [sum_numbers([int(any(missing))])[0] > 0] * len(missing)


def open_cache(
    live: AdapterOff | Frozen, folder: Path, identity: Identity, *, describe: bool = True
) -> Cached:
    """`live` behind the cache in `folder`.

    Args:
        live: the reference.
        folder: `reference.cache`.
        identity: what `live` is.
        describe: write it to `models/`, for people; one process of a run is enough.
    """
    store = LogpStore(folder)
    if describe:
        text = json.dumps(identity.content, indent=1, sort_keys=True, default=str)
        write_atomically(folder / "models" / f"{identity.digest}.json", text + "\n")
    return Cached(live, store, identity)
