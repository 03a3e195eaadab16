"""Hands the stages to a worker, one after the other, each with its share of the time, and writes what comes back."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import ROOT, Entry, commit, file_of, read, replace_stage

# Stage → its part of the time, in the seconds that eight minutes give it.
SHARES = {
    "environment": 15,
    "kernels": 60,
    "step": 90,
    "speed": 150,
    "length": 120,
    "planner": 60,
    "miniature": 600,
}
GRACE = 20.0  # seconds behind a stage's time after which its process is ended
START = 120.0  # seconds for a process to import torch and greet
# Of the worker, where nobody has set them: segments that grow break up less of a GPU's memory.
ENVIRONMENT = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "HF_HUB_OFFLINE": "1"}
LAST_WORDS = 1500  # characters of what a process said before it died


class WorkerDiedError(Exception):
    """The worker is gone, or was ended because it had no time left; the message says which."""


class Worker:
    """A process that runs stages (worker.py)."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.worker"],
            cwd=ROOT,
            env=ENVIRONMENT | os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # what it starts ends with it
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.hello = next(self._messages(time.monotonic() + START))

    def run(self, order: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The findings of a stage, then its end; see worker.py.

        Raises:
            WorkerDiedError: the process died, or did not end in time.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then its end is read below
            print(json.dumps(order), file=self._process.stdin, flush=True)
        for message in self._messages(time.monotonic() + order["seconds"] + GRACE):
            yield message
            if "ended" in message:
                return

    def close(self) -> None:
        """Ends the process and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _messages(self, deadline: float) -> Iterator[dict[str, Any]]:
        while True:
            try:
                line = self._lines.get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                self.close()
                raise WorkerDiedError(f"ended after {GRACE:.0f} s beyond its time\n{self._said()}") from None
            if not line:
                raise WorkerDiedError(f"the process died with code {self._process.wait()}\n{self._said()}")
            yield json.loads(line)

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-LAST_WORDS:].strip()


class Run:
    """One call of `make gpu`.

    Args:
        targets: stage → `module:function`, in the order in which they run.
        scale: see `Context`.
        minutes: for all of them.
        folder: of the card's file.
        layers: see `Context`.
        tell: takes a line of progress.

    Attributes:
        hello: what the first worker said: the card, whether it is a GPU, and versions.
    """

    def __init__(
        self,
        targets: Mapping[str, str],
        *,
        scale: str,
        minutes: float,
        folder: Path,
        layers: int,
        tell: Callable[[str], None],
    ) -> None:
        self._targets, self._tell = targets, tell
        self._order = {"scale": scale, "layers": layers}
        self._end = time.monotonic() + 60 * minutes
        self._worker: Worker | None = Worker()
        self.hello = self._worker.hello
        self._path = file_of(folder, self.hello["card"])

    def stages(self) -> dict[str, Entry]:
        """Runs every stage, writes each finding as it comes, and returns the entries."""
        done: dict[str, Entry] = {}
        names, common = list(self._targets), {"commit": commit(), "versions": self.hello["versions"]}
        for place, stage in enumerate(names):
            start, today = time.monotonic(), date.today().isoformat()
            entry: Entry = {
                "result": {},
                "date": today,
                "scale": self._order["scale"],
                "unfinished": True,
            } | common
            for _ in self._findings(stage, entry, self._share(names[place:])):
                entry["seconds"] = round(time.monotonic() - start, 1)
                self._write(stage, entry)
            del entry["unfinished"]
            entry["seconds"] = round(time.monotonic() - start, 1)
            self._write(stage, entry)
            done[stage] = entry
            state = "failed" if "error" in entry else entry.get("skipped", "done")
            self._progress(f"{stage}: {state}, {entry['seconds']:.0f} s")
        self._tell(f"written: {self._path}")
        return done

    def _write(self, stage: str, entry: Entry) -> None:
        """Into the card's file; a stage that found nothing, since it was skipped, leaves there what it found before."""
        if "skipped" in entry and not entry["result"] and read(self._path).get(stage, {}).get("result"):
            return
        replace_stage(self._path, self.hello["card"], stage, entry)

    def close(self) -> None:
        """Ends the worker; the next stage starts another."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None

    def _share(self, remaining: Sequence[str]) -> float:
        """Seconds of the first of the remaining stages; what it leaves the later ones have."""
        parts = [SHARES.get(stage, 60) for stage in remaining]
        return (self._end - time.monotonic()) * parts[0] / sum(parts)

    def _findings(self, stage: str, entry: Entry, seconds: float) -> Iterator[None]:
        """Fills the entry, and comes back after each finding."""
        if seconds < 1:
            entry["skipped"] = "no time left"
            return
        self._progress(f"{stage}: has {seconds:.0f} s")
        order = {"target": self._targets[stage], "seconds": seconds} | self._order
        try:
            self._worker = self._worker or Worker()
            for message in self._worker.run(order):
                self._take(entry, message)
                yield
        except WorkerDiedError as death:
            entry["error"] = str(death)
        if "error" in entry:  # the device may be lost to this process: the next stage gets another
            self.close()

    def _take(self, entry: Entry, message: dict[str, Any]) -> None:
        if message.get("ended"):
            entry["error"] = message["ended"]
        elif message.get("name") == "skipped":
            entry["skipped"] = message["value"]
        elif "name" in message:
            entry["result"][message["name"]] = message["value"]
            self._progress(f"  {message['name']}")

    def _progress(self, said: str) -> None:
        left = max(0, int(self._end - time.monotonic()))
        self._tell(f"[{left // 60}:{left % 60:02d} left] {said}")
