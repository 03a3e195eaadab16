"""Is a degree for each step worth it, where rows are shared out evenly anyway?

    ALIGN_DATA=… python -m benchmarks.degrees_by_step     # some minutes; writes results/degrees_by_step.json

FlexSP (arXiv 2412.01523) gives short rows fewer GPUs than long ones. Of that, a run that forms its groups for several
degrees at the start could choose a degree for each step, the same on all processes. Compared are, in simulation:

- **one degree** for all steps, the fastest of those that hold the longest row of the data, with rows as they come, with
  each step's rows shared out evenly (`data.order.balance`), and with steps of like rows besides (`data/order=buckets`);
- **a degree a step**, the fastest that holds the step's longest row, with the latter two orders;
- **a degree a row** (FlexSP itself, `flexible_degrees.py`): what would be left to gain.

Orders and shares are those of training (`align/data/orders.py`, `align/training/even_groups.py`). LoRA trains an 8B
under DDP: groups meet at a step's end. A row takes the planner's seconds at a degree (`align/planning/time.py`, the
faster exchange), where the planner says that it fits; memory levers are one set for the whole run, the best for each
way. A step has as many prompts as `PROMPTS` says for each GPU; a group reads one row at a time.

`gain` is the fastest way with one degree over the fastest with a degree a step, less 1; `gain_in_any_order` the same
where steps are drawn at random, without buckets.

Rows are real, as they are and stretched 8 and 16 times: those of `flexible_degrees.py` (300 preference pairs and 65
speeches of `$ALIGN_DATA`), and the 120 prompts of LongBench-Write with two answers as long as each asks for, of which
LongWriter's DPO rows are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from align.core.files import write_json
from align.data.orders import Buckets, Order, Shuffled
from align.planning.architecture import Architecture
from align.planning.job import Job, Levers, Machine, Precision, Rows, Strategy
from align.planning.memory import predict
from align.planning.search import HEADROOM
from align.planning.time import step_time
from align.training.even_groups import share_out
from benchmarks.flexible_degrees import many_degrees, real_lengths
from benchmarks.plan_scale import architecture, cluster

STEPS = 50
PRICED = 5  # of how many steps one is placed with a degree a row, which takes long
PROMPTS = (1, 4)  # of a step, for each GPU
STRETCHES = (1, 8, 16)
TOKENS_OF_WORD = 1.3
WRAPPER = "ddp"
WAYS = ("one degree", "a degree a step")
ORDERS: Mapping[str, Order] = {"as they come": Shuffled(), "shared out": Shuffled(), "buckets": Buckets()}
LEVERS = tuple(
    Levers(mode, offload=offload, mlp_chunk=chunk)
    for mode, offload, chunk in product(("keep_attention", "full"), ("none", "host"), (None, 4096))
)
RESULTS = Path(__file__).parent / "results" / "degrees_by_step.json"


@dataclass(frozen=True, order=True)
class Row:
    """Tokens of a prompt and of its two answers."""

    prompt: int
    answers: tuple[int, int]

    @property
    def tokens(self) -> int:
        """Of the packed row."""
        return self.prompt + sum(self.answers)


def pairs_and_speeches(data: Path, stretch: int) -> list[Row]:
    """The rows of `flexible_degrees.py`: two answers of a quarter of the row, or of 512 tokens."""
    found = []
    for length in (real_lengths(data) * stretch).tolist():
        answer = max(1, min(512, length // 4))
        found.append(Row(max(1, length - 2 * answer), (answer, answer)))
    return found


def long_answers(data: Path, stretch: int) -> list[Row]:
    """A prompt of 50 tokens and two answers as long as LongBench-Write's prompt asks for, in words."""
    lines = (data / "longbench_write" / "longbench_write.jsonl").read_text(encoding="utf-8").splitlines()
    words = [int(json.loads(line)["length"]) for line in lines]
    lengths = [max(1, round(stretch * TOKENS_OF_WORD * each)) for each in words]
    return [Row(50 * stretch, (length, length)) for length in lengths]


DATA = {"pairs and speeches": pairs_and_speeches, "LongBench-Write": long_answers}


def clusters() -> dict[str, Machine]:
    """One machine, and 64 GPUs on a fast and on a slow network."""
    slow = cluster(64, "a100_80gb", memory_gb=40.0, inter_gb_per_s=50.0 / 8)
    return {
        "8 × H100 80 GB": cluster(8),
        "64 × H100 80 GB, 400 Gbit/s a GPU": cluster(64),
        "64 × A100 40 GB, 400 Gbit/s a machine": slow,
    }


@dataclass(frozen=True)
class Costs:
    """Seconds of rows by degree on a machine, with one set of levers; infinite where a row does not fit."""

    sizes: Architecture
    machine: Machine
    levers: Levers

    @property
    def degrees(self) -> tuple[int, ...]:
        """Powers of two up to all GPUs."""
        return tuple(2**k for k in range(self.machine.count.bit_length()))

    def table(self, rows: Sequence[Row]) -> np.ndarray:
        """`[rows, degrees]`."""
        seconds = cache(self._row)
        return np.array([seconds(row) for row in rows])

    def wrapper(self) -> float:
        """Seconds of a step's sums."""
        strategy = Strategy(WRAPPER, levers=self.levers)
        return step_time(self.sizes, _job(Row(512, (256, 256))), strategy, self.machine).wrapper

    def _row(self, row: Row) -> list[float]:
        return [
            min(
                self._seconds(row, Strategy(WRAPPER, kind, degree, self.levers))
                for kind in (("none",) if degree == 1 else ("ulysses", "gather"))
            )
            for degree in self.degrees
        ]

    def _seconds(self, row: Row, strategy: Strategy) -> float:
        if predict(self.sizes, _job(row), strategy, self.machine).total > HEADROOM * self.machine.memory:
            return float("inf")
        time = step_time(self.sizes, _job(row), strategy, self.machine)
        return time.compute + time.exchange + time.host


def _job(row: Row) -> Job:
    return Job(Rows(row.prompt, row.answers), Precision(2))


def steps_of(order: Order, rows: Sequence[Row], drawn: np.ndarray, prompts: int) -> list[np.ndarray]:
    """Each step's rows, as numbers of `rows`: `drawn` are those of an epoch, which the order arranges."""
    tokens = np.array([rows[i].tokens for i in drawn])
    found = drawn[order.arrange(tokens, prompts=prompts, rng=np.random.default_rng(0))]
    return list(found.reshape(-1, prompts))


def step_seconds(seconds: np.ndarray, *, groups: int, shared_out: bool) -> float:
    """When the last group has read its rows, one at a time; infinite where one does not fit."""
    if not np.isfinite(seconds).all():
        return float("inf")
    if shared_out:
        seconds = seconds[share_out(seconds, batch=1, groups=groups)]
    return float(np.bincount(np.arange(len(seconds)) % groups, weights=seconds).max())


def by_degree(
    costs: Costs, table: np.ndarray, steps: Sequence[np.ndarray], *, shared_out: bool
) -> np.ndarray:
    """`[steps, degrees]` seconds."""
    gpus = costs.machine.count
    return np.array(
        [
            [
                step_seconds(table[step, i], groups=gpus // degree, shared_out=shared_out)
                for i, degree in enumerate(costs.degrees)
            ]
            for step in steps
        ]
    )


def compare(costs: Costs, rows: Sequence[Row], *, prompts: int) -> dict[str, float]:
    """Mean seconds of a step by way; empty where these levers hold the longest row at no degree.

    Args:
        costs: of rows.
        rows: that an epoch's are drawn from, with replacement.
        prompts: of a step.
    """
    table = costs.table(rows)
    holding = np.isfinite(table).all(axis=0)
    if not holding.any():
        return {}
    drawn = np.random.default_rng(1).integers(0, len(rows), STEPS * prompts)
    found: dict[str, float] = {}
    for name, order in ORDERS.items():
        steps = steps_of(order, rows, drawn, prompts)
        each = by_degree(costs, table, steps, shared_out=name != "as they come")
        found[f"one degree, {name}"] = float(each[:, holding].mean(axis=0).min())
        if name != "as they come":
            found[f"a degree a step, {name}"] = float(each.min(axis=1).mean())
        if name == "shared out":
            found["a degree a row"] = _by_row(costs, table, steps, each.min(axis=1))
    wrapper = costs.wrapper()
    return {name: seconds + wrapper for name, seconds in found.items()}


def _by_row(costs: Costs, table: np.ndarray, steps: Sequence[np.ndarray], one: np.ndarray) -> float:
    """Seconds of a step with a degree for each row: of some steps, in proportion to `one`, `[steps]`, of all."""
    some = list(range(0, len(steps), PRICED))
    gpus = costs.machine.count
    many = [many_degrees(table[steps[i]], costs.degrees, gpus, at_most=float(one[i])) for i in some]
    return float(np.mean(many) / one[some].mean() * one.mean())


def cell(sizes: Architecture, machine: Machine, rows: Sequence[Row], prompts: int) -> dict[str, Any]:
    """Each way with the memory levers that are best for it."""
    ways: dict[str, float] = {}
    for levers in LEVERS:
        for name, seconds in compare(Costs(sizes, machine, levers), rows, prompts=prompts).items():
            ways[name] = min(seconds, ways.get(name, float("inf")))
    tokens = [row.tokens for row in rows]
    shared, buckets = ([ways[f"{way}, {name}"] for way in WAYS] for name in ("shared out", "buckets"))
    return {
        "gpus": machine.count,
        "prompts": prompts,
        "median": int(np.median(tokens)),
        "longest": max(tokens),
        "seconds": ways,
        "gain": min(shared[0], buckets[0]) / min(shared[1], buckets[1]) - 1,
        "gain_in_any_order": shared[0] / shared[1] - 1,
    }


def main() -> None:
    """Every cluster, data, stretch and number of prompts."""
    data, console = Path(os.environ["ALIGN_DATA"]), Console()
    sizes, cells = architecture(lora=16), []
    for (name, machine), (of, read), stretch in product(clusters().items(), DATA.items(), STRETCHES):
        rows = read(data, stretch)
        for each in PROMPTS:
            found = cell(sizes, machine, rows, each * machine.count)
            cells.append(found | {"cluster": name, "data": of, "stretch": stretch})
            console.print(
                f"{name}, {of} × {stretch}, {each} a GPU: {found['gain']:+.1%}, without buckets "
                f"{found['gain_in_any_order']:+.1%}",
                soft_wrap=True,
            )
    write_json(RESULTS, {"model": "Llama-3-8B, LoRA", "steps": STEPS, "cells": cells})


if __name__ == "__main__":
    main()
