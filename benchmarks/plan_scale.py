"""From one GPU to 1,024: time, memory and communication for rows of 32K to 1M tokens; simulated from one GPU's rates.

    python -m benchmarks.plan_scale          # tables, results/plan_scale.json and plan_scale.png; half a minute

The formulas of `align.planning` are put together for clusters that are not at hand. The rates of one GPU are measured
where `benchmarks/results/gpu/` has them (`gpu_rates.py`), else they are the assumptions of `hydra_conf/gpus/`;
bandwidths between GPUs are always assumptions. A number that rests on one carries a `~`, and the results name what it
rests on. A row has T tokens on n GPUs, t = T/n of them on each; the model has L layers, H query and K key-value heads
of D numbers; b bytes a number (bf16: 2); p passes over the layers (forward, backward, and one more where checkpoints
are recomputed: p = 3).

**Volume**, bytes that a GPU sends for one row (`align/planning/time.py`):

- ulysses: `p·L·t·b·(2·H + 2·K')·D·(n − 1)/n`: q, k, v go out, attention's output comes back; K' = K heads, and a
  copy for each further rank that reads one (n > K). It falls with n, as t does: `≈ 1/n`.
- gather: `p·L·t·b·2·K·D·(n − 1)`: every GPU's keys and values go to all others. It does not fall with n: `T·(n − 1)/n`.
- mixed, u × g = n: ulysses among u GPUs of a machine, then each gathers the keys and values of its own heads from the g
  groups: `p·L·t·b·D·((2·H + 2·K')·(u − 1)/u + 2·K'·(g − 1))`; only the second part leaves the machine.

Of n GPUs in machines of m, `(n − m)/(n − 1)` of what is sent crosses the slower network.

**Memory** of a GPU (`align/planning/memory.py`): weights, gradients and states by the wrapper's share; checkpoints
`L·t·H·D·b`, and what a layer needs while it runs, of t tokens; but keys and values are those of all T tokens:
`2·T·D·b·max(K/n, 1)` under ulysses, `2·T·K·D·b` under gather, `2·T·D·b·max(K/u, 1)` in the mix.

**Time** of a step: work/(n · rate), attention by the GPU with the most heads (`⌈H/u⌉·u/H` of the mean), and volume
over bandwidth, once with nothing overlapped, by which ways are chosen, and once with what can be (`plan_overlap.py`);
a step has `PROMPTS` prompts, groups that a degree takes become accumulation. For each exchange the fastest wrapper,
degree and memory levers that fit are taken.

**One degree for all, against degrees a batch** (FlexSP, arXiv 2412.01523): see `benchmarks/flexible_degrees.py`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from align.adapters.lora import Lora
from align.core.files import write_json
from align.models.settings import ModelSettings
from align.planning.architecture import Architecture, measure, read_config
from align.planning.job import Job, Machine, Precision, Rows, Strategy
from align.planning.request import machine_of
from align.planning.search import LOGITS_CHUNKS, Priced, lever_sets, price
from benchmarks import flexible_degrees, plan_scale_report
from benchmarks.gpu_rates import Rates, given_settings, rates_of
from benchmarks.plan_overlap import overlapped

MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"
KIND = "h100_80gb"
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LENGTHS = tuple(1024 * k for k in (32, 64, 128, 256, 512, 1024))
EXCHANGES = ("ulysses", "gather", "mixed")
PER_MACHINE = 8
PROMPTS = 128  # of a step, at every size of the cluster
ANSWERS = (512, 512, 512)  # LOGO: a chosen and two rejected ones
AT_LENGTH, AT_GPUS = 256 * 1024, 128  # of the table by degree
WRAPPERS = ("zero1", "zero2", "zero3")  # all parameters of 8B train: whole weights, or shares of them
GROWN = 64 * 1024  # tokens of the prompt of the job that grows from one GPU on: an 8B with LoRA
RESULTS = Path(__file__).parent / "results"


def cluster(gpus: int, kind: str = KIND, **other: float) -> Machine:
    """Machines of eight of a file of `hydra_conf/gpus/`, with what was measured and what is given in its place."""
    given = given_settings(kind)
    values: dict[str, Any] = measured(kind).settings(given) | other
    values |= {"count": gpus, "nodes": max(1, gpus // PER_MACHINE)}
    return machine_of(replace(given, **values), memory=0.0, runtime=0.0, products=2)


@cache
def measured(kind: str) -> Rates:
    """What a card of the kind was measured at."""
    return rates_of(kind)


def assumptions(priced: Priced, kind: str = KIND) -> list[str]:
    """What the seconds of a way rest on that nobody has measured."""
    rates, time, levers = measured(kind), priced.time, priced.strategy.levers
    found = {
        "matrix rate": rates.matrix is None,
        "attention rate": rates.attention is None,
        "network": time.exchange + time.wrapper > 0,
        "host bandwidth": levers.offload != "none" and rates.to_host is None,
        "disk bandwidth": levers.offload == "disk",
    }
    return [name for name, assumed in found.items() if assumed]


def degree_clusters() -> dict[str, Machine]:
    """Where degrees are compared: a fast network, and FlexSP's kind: 40 GB a GPU, 400 Gbit/s a machine."""
    slow = cluster(64, "a100_80gb", memory_gb=40.0, inter_gb_per_s=50.0 / PER_MACHINE)
    return {"64 × H100 80 GB, 400 Gbit/s a GPU": cluster(64), "64 × A100 40 GB, 400 Gbit/s a machine": slow}


def architecture(lora: int = 0) -> Architecture:
    """Llama-3-8B, all parameters or LoRA of that rank."""
    settings = ModelSettings(path=MODEL, adapter=Lora(r=lora) if lora else None)
    return measure(read_config(settings)[0], settings)


def layouts(exchange: str, gpus: int) -> Iterator[Strategy]:
    """Every degree of an exchange, a power of two; for the mix every split with ulysses within a machine."""
    degree = 1
    while degree <= gpus:
        if degree == 1:
            yield Strategy()
        elif exchange != "mixed":
            yield Strategy(exchange=exchange, degree=degree)
        else:
            for inner in (2, 4, 8):
                if 2 * inner <= degree and inner <= PER_MACHINE:
                    yield Strategy(exchange="mixed", degree=degree, inner=inner)
        degree *= 2


def fastest(
    sizes: Architecture, job: Job, machine: Machine, exchange: str, *, wrappers: tuple[str, ...] = WRAPPERS
) -> Priced | None:
    """The least seconds a prompt of what fits, in one of these wrappers on several GPUs; None where nothing does."""
    best = None
    wrappers = wrappers if machine.count > 1 else ("none",)
    for layout, wrapper in product(layouts(exchange, machine.count), wrappers):
        groups = machine.count // layout.degree
        if groups > PROMPTS:
            continue
        its = replace(job, accumulation=PROMPTS // groups)
        for levers in (one for one in lever_sets("cuda") if one.logits_chunk == LOGITS_CHUNKS[0]):
            one = price(sizes, its, replace(layout, wrapper=wrapper, levers=levers), machine)
            if one.fits(machine) and (best is None or one.time.per_prompt < best.time.per_prompt):
                best = one
    return best


@dataclass(frozen=True)
class Cell:
    """The fastest way of one exchange at one place of the grid."""

    sizes: Architecture
    gpus: int
    length: int
    exchange: str
    priced: Priced | None

    def to_json(self) -> dict[str, Any]:
        """Degree, seconds a prompt, bytes."""
        place = {"gpus": self.gpus, "length": self.length, "exchange": self.exchange}
        if self.priced is None:
            return place | {"fits": False}
        strategy, time, memory = self.priced.strategy, self.priced.time, self.priced.memory
        hidden = overlapped(self.sizes, self.priced.job, strategy, cluster(self.gpus))
        return place | {
            "fits": True,
            "degree": strategy.degree,
            "inner": strategy.inner,
            "wrapper": strategy.wrapper,
            "levers": vars(strategy.levers),
            "seconds_per_prompt": time.per_prompt,
            "overlapped_seconds_per_prompt": hidden.seconds / time.prompts,
            "exposed_share": hidden.exposed,
            "assumed": assumptions(self.priced),
            "exchange_share": time.exchange / time.total,
            "memory_gb": memory.total / 1e9,
            "exchange_gb_per_row": time.exchange_bytes / self.priced.job.accumulation / 1e9,
        }


def simulate(gpus: tuple[int, ...], lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """The grid: cluster × length × exchange."""
    sizes = architecture()
    cells = []
    for count, length, exchange in product(gpus, lengths, EXCHANGES):
        job = Job(Rows(length - sum(ANSWERS), ANSWERS), Precision(4, autocast=True))
        best = fastest(sizes, job, cluster(count), exchange)
        cells.append(Cell(sizes, count, length, exchange, best).to_json())
    return cells


def grown(gpus: tuple[int, ...]) -> list[dict[str, Any]]:
    """The fastest way of an 8B with LoRA under DDP on more and more GPUs, a step of `PROMPTS` prompts on each."""
    sizes = architecture(lora=16)
    job = Job(Rows(GROWN, ANSWERS), Precision(2))
    cells = []
    for count in gpus:
        ways = [
            fastest(sizes, job, cluster(count), exchange, wrappers=("ddp",))
            for exchange in ("ulysses", "gather")
        ]
        best = min(
            (one for one in ways if one is not None), key=lambda one: one.time.per_prompt, default=None
        )
        exchange = "none" if best is None else best.strategy.exchange
        cells.append(Cell(sizes, count, job.rows.tokens, exchange, best).to_json())
    return cells


def by_degree(gpus: int, length: int) -> list[dict[str, Any]]:
    """Every degree of every exchange under ZeRO-3 and the default levers, whether it fits or not."""
    sizes, machine = architecture(), cluster(gpus)
    job = Job(Rows(length - sum(ANSWERS), ANSWERS), Precision(4, autocast=True))
    cells = []
    for exchange in EXCHANGES:
        for layout in layouts(exchange, gpus):
            if layout.degree > 1 and layout.inner in (1, min(PER_MACHINE, layout.degree // 2)):
                priced = price(sizes, job, replace(layout, wrapper="zero3"), machine)
                cell = Cell(sizes, gpus, length, exchange, priced)
                cells.append(cell.to_json() | {"fits": priced.fits(machine)})
    return cells


def main() -> None:
    """Simulates, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", type=int, nargs="+", default=list(GPUS))
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens of a row")
    parser.add_argument(
        "--data", default=os.environ.get("ALIGN_DATA"), help="folder with real rows, $ALIGN_DATA"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    console = Console(width=160)
    cells = simulate(tuple(options.gpus), tuple(options.lengths))
    for count in options.gpus:
        console.print(plan_scale_report.table(cells, count))
    degrees = by_degree(AT_GPUS if AT_GPUS in options.gpus else max(options.gpus), AT_LENGTH)
    console.print(plan_scale_report.by_degree_table(degrees))
    results: dict[str, Any] = {"model": MODEL, "prompts": PROMPTS, "answers": ANSWERS, "cells": cells}
    results["grown"] = grown(tuple(options.gpus))
    console.print(plan_scale_report.grown_table(results["grown"]))
    results["rates"] = vars(measured(KIND))
    console.print(plan_scale_report.MARKS, soft_wrap=True)
    results["by_degree"] = degrees
    if options.data is None:
        console.print("ALIGN_DATA is not set: no real lengths, so one degree is not held against several.")
    else:
        real = flexible_degrees.real_lengths(Path(options.data))
        results["degrees"] = flexible_degrees.compare(architecture(lora=16), real, degree_clusters())
        console.print(plan_scale_report.degrees_table(results["degrees"]))
    write_json(options.output / "plan_scale.json", results)
    plan_scale_report.draw(results, options.output / "plan_scale.png")
    console.print(f"written to {options.output / 'plan_scale.json'} and .png", soft_wrap=True)


if __name__ == "__main__":
    main()
