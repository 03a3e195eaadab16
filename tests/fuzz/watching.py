"""Tries inputs in a process of their own, which is replaced when one of them hangs or kills it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.fuzz import reading

STUCK = 3 * reading.SECONDS  # seconds without an answer: it hangs where no signal reaches it
ROOT = Path(__file__).parents[2]
COMMANDS = 60  # of so many inputs one also runs as a command of its own


def run(
    jobs: list[tuple[str, str]], folder: Path, console: Console
) -> tuple[list[tuple[tuple[str, str], str]], Counter[str]]:
    """Every job's input, tried; what was found, and how the others ended."""
    found: list[tuple[tuple[str, str], str]] = []
    ends: Counter[str] = Counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    worker: Worker | None = None
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("fuzz", total=len(jobs))
        for number, job in enumerate(jobs):
            worker = worker or Worker(folder)
            end, text = worker.ask(job, whole=number % COMMANDS == 0)
            if end == "found":
                found.append((job, text))
                console.print(f"{job[0]} {job[1]}: {text}", highlight=False, markup=False)
            if end == "lost":
                found.append((job, text))
                worker = None
            ends[end] += 1
            progress.update(bar, advance=1, description=job[0])
    if worker is not None:
        worker.end()
    return found, ends


class Worker:
    """A process that tries inputs, one after the other."""

    def __init__(self, folder: Path) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_work, args=(theirs, folder), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, job: tuple[str, str], *, whole: bool) -> tuple[str, str]:
        """How an input ended: `sentence`, `result`, `found`, or `lost` with the process."""
        try:
            self._connection.send((*job, whole))
            if self._connection.poll(STUCK):
                return self._connection.recv()  # type: ignore[no-any-return]
            problem = f"hangs: no answer in {STUCK} s"
        except (EOFError, OSError):
            self._process.join()
            problem = f"the process died ({self._process.exitcode})"
        self.end()
        return "lost", problem

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()


def _work(connection: Connection, folder: Path) -> None:
    place = reading.Place(folder)
    os.environ |= place.environment()
    for name in ("pypdf", "transformers", "datasets"):  # they tell what they mend
        logging.getLogger(name).setLevel(logging.CRITICAL)
    place.furnish()
    os.chdir(place.work)
    while True:
        kind, seed, whole = connection.recv()
        given = reading.drawn(kind, seed)
        try:
            said = reading.tried(kind, given, place)
            if whole:
                _run_command(kind, given, place)
            connection.send(("result", "") if said is None else ("sentence", said))
        except reading.FoundError as problem:
            connection.send(("found", str(problem)))


def _run_command(kind: str, given: Any, place: reading.Place) -> None:
    """The input as a command of its own: no traceback, and an exit code that says how it ended."""
    command = reading.command_of(kind, given, place)
    if any("\x00" in word for word in command) or (
        kind == "words" and given[0] in ("train", "rounds", "verify")
    ):
        return  # no system passes such a word on; these would train
    try:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=STUCK,
            check=False,
            errors="replace",
            env=os.environ | {"PYTHONPATH": path},
        )
    except (subprocess.TimeoutExpired, UnicodeEncodeError) as error:
        if isinstance(error, UnicodeEncodeError):  # nor such a one
            return
        raise reading.FoundError(f"the command hangs: {command[1:]}") from None
    if "Traceback" in ended.stderr or ended.returncode not in (0, 1, 2):
        last = ended.stderr.strip().splitlines()[-1:] or [""]
        raise reading.FoundError(f"the command ended in {ended.returncode}: {last[0][:200]} ({command[3:]})")
