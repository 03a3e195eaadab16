"""FlexSP's question: what one sequence-parallel degree for all rows costs, against degrees that follow the lengths.

Lengths are real: the rows of `$ALIGN_DATA` (300 preference pairs and 65 speeches, a long tail), as they are and
stretched, so that the longest reaches what long-context training uses. A step has `BATCH` rows, drawn with replacement.

A row of T tokens on n GPUs takes `s(T, n)` seconds (`align/planning/time.py`, the faster of ulysses and gather) and
fits where `align/planning/memory.py` says so. LoRA trains: whole weights are on every GPU (DDP), so groups need not
meet before the step ends. A step's time is when the last GPU is done, and the sum of the gradients:

- **one for all**: the degree that is fastest over all steps, of those that hold the longest row of the data;
- **one a batch**: for each step the fastest degree that holds its longest row;
- **many a batch** (FlexSP): each row has a degree of its own. For a target M every row takes the degree with the
  least GPU time n·s(T, n) among those with s(T, n) ≤ M; several M are tried, and the choices above too.

Rows are placed longest degree first, then longest time first, each on the n neighbouring GPUs that are free first
(FlexSP solves an integer program here; this is an upper bound of what it would find). **bound** is the least
GPU time of all rows over the GPUs, which no placement beats.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from align.core.errors import UserError
from align.planning.architecture import Architecture
from align.planning.job import Job, Levers, Machine, Precision, Rows, Strategy
from align.planning.memory import predict
from align.planning.search import HEADROOM
from align.planning.time import step_time

CHARACTERS_PER_TOKEN = 5.0  # SmolLM2's tokenizer: 5.1 on the speeches, 4.6 on the pairs
BATCH = 512
STEPS = 5
STRETCHES = (1, 8, 16)
WRAPPER = "ddp"
TARGETS = 12  # values of M


def real_lengths(data: Path) -> np.ndarray:
    """`[rows]` tokens of each row under `$ALIGN_DATA`, from its characters."""
    archive = zipfile.ZipFile(data / "documents" / "state_union.zip")
    sizes = [entry.file_size for entry in archive.infolist() if entry.filename.endswith(".txt")]
    for row in json.loads((data / "preference" / "dpo_en_demo.json").read_text()):
        texts = [turn["value"] for turn in (*row["conversations"], row["chosen"], row["rejected"])]
        sizes.append(sum(map(len, texts)))
    return np.maximum(32, np.array(sizes) / CHARACTERS_PER_TOKEN).astype(int)


@dataclass(frozen=True)
class Costs:
    """Seconds of a row by its length and degree; infinite where it does not fit."""

    sizes: Architecture
    machine: Machine
    degrees: tuple[int, ...]

    def job(self, length: int) -> Job:
        """One row: the prompt and two answers, a quarter of it each where that is less than 512 tokens."""
        answer = max(1, min(512, length // 4))
        return Job(Rows(max(1, length - 2 * answer), (answer, answer)), Precision(2))

    def seconds(self, length: int, degree: int) -> float:
        """Of the faster exchange that fits."""
        kinds = ("none",) if degree == 1 else ("ulysses", "gather")
        return min(self._seconds(length, Strategy(WRAPPER, kind, degree, Levers())) for kind in kinds)

    def _seconds(self, length: int, strategy: Strategy) -> float:
        job = self.job(length)
        if predict(self.sizes, job, strategy, self.machine).total > HEADROOM * self.machine.memory:
            return float("inf")
        time = step_time(self.sizes, job, strategy, self.machine)
        return time.compute + time.exchange

    def table(self, lengths: np.ndarray) -> np.ndarray:
        """`[rows, degrees]`."""
        seconds = cache(self.seconds)
        return np.array([[seconds(int(length), n) for n in self.degrees] for length in lengths])

    def wrapper(self) -> float:
        """Seconds of a step's sums."""
        job = self.job(1024)
        strategy = Strategy(WRAPPER, levers=Levers())
        return step_time(self.sizes, job, strategy, self.machine).wrapper


def makespan(seconds: Sequence[float], degrees: Sequence[int], gpus: int) -> float:
    """When the last of `gpus` is done: largest degree first, then longest first, where GPUs are free first.

    Args:
        seconds: `[rows]` of each row at its degree.
        degrees: `[rows]` powers of two that divide `gpus`.
        gpus: how many.
    """
    free = np.zeros(gpus)
    for row in sorted(range(len(seconds)), key=lambda row: (-degrees[row], -seconds[row])):
        blocks = free.reshape(-1, degrees[row])
        starts = blocks.max(axis=1)
        block = int(starts.argmin())
        blocks[block] = starts[block] + seconds[row]
    return float(free.max())


def one_degree(table: np.ndarray, degrees: Sequence[int], gpus: int) -> np.ndarray:
    """`[degrees]` seconds of a step with each degree for all its rows; infinite where one does not fit."""
    return np.array(
        [
            makespan(table[:, i], [n] * len(table), gpus) if np.isfinite(table[:, i]).all() else np.inf
            for i, n in enumerate(degrees)
        ]
    )


def least(table: np.ndarray, degrees: Sequence[int], gpus: int) -> float:
    """Seconds that no placement beats: the least GPU time of every row, spread evenly."""
    return float((table * np.array(degrees)).min(axis=1).sum() / gpus)


def many_degrees(table: np.ndarray, degrees: Sequence[int], gpus: int, *, at_most: float) -> float:
    """Seconds of a step with a degree for each row, never more than `at_most`, which one degree takes."""
    area = table * np.array(degrees)
    best = at_most
    for target in np.geomspace(least(table, degrees, gpus), at_most, TARGETS):
        allowed = np.where(table <= target, area, np.inf)
        # Where no degree is fast enough the fastest one is taken.
        slow = ~np.isfinite(allowed).any(axis=1)
        choice = np.where(slow, table.argmin(axis=1), allowed.argmin(axis=1))
        chosen = table[np.arange(len(table)), choice]
        best = min(best, makespan(chosen, [degrees[i] for i in choice], gpus))
    return best


def compare(
    sizes: Architecture, lengths: np.ndarray, clusters: Mapping[str, Machine], *, seed: int = 0
) -> list[dict[str, Any]]:
    """One entry for each cluster and stretch: seconds a step of the three ways, and the bound.

    Raises:
        UserError: no degree holds the longest row.
    """
    found = []
    for (name, machine), stretch in product(clusters.items(), STRETCHES):
        costs = Costs(sizes, machine, tuple(2**k for k in range(machine.count.bit_length())))
        table = costs.table(lengths * stretch)
        if not np.isfinite(table).all(axis=0).any():
            longest = lengths.max() * stretch
            raise UserError(f"no degree on {name} holds the longest row, {longest} tokens.")
        found.append(_compared(costs, lengths * stretch, table, seed) | {"cluster": name, "stretch": stretch})
    return found


def _compared(costs: Costs, lengths: np.ndarray, table: np.ndarray, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    gpus, degrees = costs.machine.count, costs.degrees
    batches = [table[rng.integers(0, len(table), BATCH)] for _ in range(STEPS)]
    each = np.array([one_degree(batch, degrees, gpus) for batch in batches])  # [steps, degrees]
    # The longest row of the data may come at any time.
    for_all = np.where(np.isfinite(table).all(axis=0), each.mean(axis=0), np.inf)
    pairs = zip(batches, each, strict=True)
    many = [many_degrees(batch, degrees, gpus, at_most=float(one.min())) for batch, one in pairs]
    wrapper = costs.wrapper()
    return {
        "gpus": gpus,
        "median": int(np.median(lengths)),
        "longest": int(lengths.max()),
        "degree": degrees[int(for_all.argmin())],
        "one_for_all": float(for_all.min() + wrapper),
        "one_a_batch": float(each.min(axis=1).mean() + wrapper),
        "many_a_batch": float(np.mean(many) + wrapper),
        "bound": float(np.mean([least(batch, degrees, gpus) for batch in batches]) + wrapper),
    }
