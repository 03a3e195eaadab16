"""One cell: its processes one after the other, what they cost, and a JSON that appears when all are done."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import align
from align.core.files import write_atomically
from benchmarks.miniature.cells import Cell, Place, Step
from benchmarks.miniature.files import read_lines

ROOT = Path(__file__).parents[2]
COSTS = "steps.json"  # in a cell's folder: finished steps and what each start took


def result_path(results: Path, cell: Cell) -> Path:
    """The cell's JSON."""
    return results / f"{cell.id.replace('/', '-')}.json"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[int | None]:
    """The lock of the cell of `folder`, a file descriptor; None where another process has it.

    A step that gets the descriptor holds the lock too: one that outlives its killed driver is not run twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def run_cell(cell: Cell, place: Place, results: Path, *, threads: int, lock: int | None = None) -> Path:
    """Runs the steps that an earlier start has not finished, and writes the cell's JSON.

    Args:
        cell: what to run.
        place: where.
        results: folder of finished cells.
        threads: of each process.
        lock: see `claimed`.

    Raises:
        RuntimeError: a step ended with an error; its log is named.
    """
    folder = place.folder(cell.id)
    costs: list[dict[str, Any]] = (
        json.loads((folder / COSTS).read_text()) if (folder / COSTS).exists() else []
    )
    steps = cell.steps(cell, place)
    for step in steps:
        if any(cost["step"] == step.name and cost["finished"] for cost in costs):
            continue
        step.prepare()
        costs.append(_run_step(step, folder, threads=threads, lock=lock))
        _write_list(folder / COSTS, costs)
        if not costs[-1]["finished"]:
            raise RuntimeError(f"{cell.id}: {step.name} ended with an error, see {folder / step.name}.log")
    path = result_path(results, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, as_json(_result(cell, place, steps, costs)))
    for pattern in cell.temporary:
        for old in folder.glob(pattern):
            shutil.rmtree(old)
    return path


def _run_step(step: Step, folder: Path, *, threads: int, lock: int | None) -> dict[str, Any]:
    """Runs the command; what it says goes to a log, which a later start continues."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{step.name}.log").open("a") as log:
        done = subprocess.run(
            step.command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            check=False,
            pass_fds=() if lock is None else (lock,),
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "step": step.name,
        "finished": done.returncode == 0,
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
    }


def _result(
    cell: Cell, place: Place, steps: Sequence[Step], costs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    folder = place.folder(cell.id)
    found: dict[str, Any] = {
        "cell": cell.id,
        "part": cell.part,
        "method": cell.name,
        "seed": cell.seed,
        "split": place.split,
        "commands": {step.name: readable(step.command, place) for step in steps},
        "costs": list(costs),
        "machine": machine(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "align": align.__version__,
    }
    trained = folder / "train" / "results.json"
    if trained.is_file():
        found["training"] = json.loads(trained.read_text())["training"]
    learned = folder / "rows.jsonl"
    if learned.is_file():
        found["rows_sha256"] = _sha256(learned)
    made = folder / "rows" / "summary.json"
    if made.is_file():
        found["rows"] = json.loads(made.read_text())
    if cell.scored:
        records = read_lines(folder / "evaluate" / "samples.jsonl")
        found["asked_sha256"] = _sha256(place.asked(cell))
        found["scores"] = scores_of(records)
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def scores_of(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Condition → one score a question, in the order of the questions; S_l (0 … 100) for writing.

    Of documents that were read, `nll/256` has the nats a token from position 256 on.
    """
    scores: dict[str, list[float]] = {}
    for record in records:
        if "length_score" in record:
            scores.setdefault("length_score", []).append(round(record["length_score"], 4))
            scores.setdefault("written_words", []).append(record["written_words"])
        elif "by_position" in record:
            for edge, nll in record["by_position"].items():
                scores.setdefault(f"nll/{edge}", []).append(round(nll, 5))
        else:
            scores.setdefault(record["group"], []).append(record["found"])
    return scores


def readable(command: Sequence[str], place: Place) -> str:
    """The command without this machine's paths."""
    text = " ".join(["python", *command[1:]])
    return text.replace(str(place.work), "WORK").replace(str(place.data), "ALIGN_DATA")


def machine() -> str:
    """Processor, number of cores, system."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def _write_list(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    write_atomically(path, json.dumps(list(values), indent=1) + "\n")


def as_json(values: Mapping[str, Any]) -> str:
    """One key a line, so that hundreds of scores stay on one."""
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"
