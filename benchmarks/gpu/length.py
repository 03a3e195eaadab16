"""Stage `length`: the longest prompt that a step of the toolkit's trainer takes on this card, by memory levers.

A prompt is doubled until a step does not fit, then one between the last two is tried. A step of a deep model on a long
prompt takes minutes, so that by default a few layers are measured, at two depths, and the rest is extrapolated: memory
and seconds are a constant and so much for each layer, which a third depth checks. `--layers 0` measures all layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from align.planning.here import available_memory
from benchmarks.gpu.contestants import Task, shared
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import GIB, Device
from benchmarks.gpu.measuring import out_of_memory
from benchmarks.gpu.plans import longest_planned
from benchmarks.gpu.shapes import SHAPES

LEVERS: dict[str, dict[str, Any]] = {
    "tiles": {"mode": "full", "mlp_chunk": 4096},
    "tiles, offload=host": {"mode": "full", "mlp_chunk": 4096, "offload": "host"},
}
JOBS = (  # shape, what trains, method, in the order in which they are measured
    ("Llama-3-8B", "lora", "logo"),
    ("Qwen2.5-1.5B", "full", "logo"),
    ("Llama-3-8B", "lora", "dpo"),
    ("Qwen2.5-1.5B", "full", "dpo"),
)
SMALL_LEVERS: dict[str, dict[str, Any]] = {"tiles": {"mode": "full", "mlp_chunk": 32}}
START, MOST, ANSWER = 65536, 2**22, 512
QUICK = 3.0  # seconds of a step that is worth a second one
SLOWER = 1.1  # how much longer a step takes than by the square of its prompt, at most
HEADROOM = 0.97  # of the card's room; the rest is the allocator's, which cannot fill every gap


@dataclass(frozen=True)
class Step:
    """What a step costs.

    Attributes:
        seconds: of forward and backward.
        peak_gib: GiB that tensors held at most, AdamW's states included; None on a CPU.
    """

    seconds: float
    peak_gib: float | None


def run(context: Context) -> None:
    """A cell for each job and set of levers."""
    sets = context.of_scale(LEVERS, SMALL_LEVERS)
    jobs = context.of_scale(JOBS, (("tiny", "lora", "logo"), ("tiny", "full", "dpo")))
    dtype = context.of_scale(torch.bfloat16, torch.float32)
    work: dict[str, Callable[[], Any]] = {}
    for name, levers in sets.items():
        for shape, parameters, method in jobs:
            answers = (context.of_scale(ANSWER, 8),) * (3 if method == "logo" else 2)
            task = Task(
                shape, parameters, method, 0, answers, context.device.torch, levers=levers, dtype=dtype
            )
            work[f"{method} {parameters}, {shape}, {name}"] = partial(in_half_the_time, context, task)
    context.cells(work)


def in_half_the_time(context: Context, task: Task) -> dict[str, Any]:
    """`longest` with half of the time that is left, so that later cells have some; and what a plan says of it."""
    room = _room(context.device) or context.of_scale(80.0, 1.0)
    planned = longest_planned(replace(task, prompt=context.of_scale(START, 64)), room * GIB)
    found = longest(replace(context, deadline=context.deadline - context.left() / 2), task)
    return found | {"planned": planned}


def longest(context: Context, task: Task) -> dict[str, Any]:
    """The longest prompt that fits, what a step of it costs, and every one that was tried."""
    tried: dict[int, dict[str, Any]] = {}
    prompt, most = context.of_scale((START, MOST), (64, 128))
    fits = over = 0
    while prompt <= most and not over:
        found = tried[prompt] = _try(context, replace(task, prompt=prompt), tried)
        if "skipped" in found:
            break
        fits, over = (prompt, 0) if found["fits"] else (fits, prompt)
        prompt *= 2
    if fits and over:
        between = (fits + over) // 2
        tried[between] = _try(context, replace(task, prompt=between), tried)
        fits = between if tried[between].get("fits") else fits
    return {
        "longest": fits,
        "at": tried.get(fits),
        "over": over or None,
        "tried": {str(at): one for at, one in tried.items()},
    }


def _try(context: Context, task: Task, tried: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What a step on a prompt costs, and whether it fits; a sentence where there is no time to find out."""
    room = _room(context.device)
    measured = {prompt: one for prompt, one in tried.items() if "spent" in one}
    if len(measured) > 1 and room is not None:
        (shorter, one), (longer, other) = list(measured.items())[-2:]
        slope = (other["peak_gib"] - one["peak_gib"]) / (longer - shorter)
        expected = other["peak_gib"] + slope * (task.prompt - longer)
        if expected > 1.1 * room:
            return {"fits": False, "peak_gib": expected, "said": "from the two prompts before"}
    if measured:
        last = max(measured)
        if SLOWER * measured[last]["spent"] * (task.prompt / last) ** 2 > context.left():
            return {"skipped": "no time left"}
    start = time.monotonic()
    try:
        found = of_depth(context, task)
    except Exception as error:
        context.device.check()
        if not out_of_memory(error):
            raise
        return {"fits": False, "said": "out of memory"}
    fits = room is None or found["peak_gib"] <= room
    if task.levers.get("offload") == "host":
        found["host_gib"] = (
            SHAPES[task.shape].layers * SHAPES[task.shape].hidden * task.dtype.itemsize * task.prompt / GIB
        )
        fits = fits and found["host_gib"] <= HEADROOM * available_memory() / GIB
    return {"fits": fits, "spent": time.monotonic() - start} | found


def _room(device: Device) -> float | None:
    device.clean()
    room = device.room_gib()
    return None if room is None else HEADROOM * room


def of_depth(context: Context, task: Task) -> dict[str, Any]:
    """A step of the whole model, or what follows from two shallower ones; at first a third one checks them."""
    device, depth = context.device, SHAPES[task.shape].layers
    more = context.of_scale(context.layers, 2)
    if not more:
        return {"layers": depth} | vars(one_step(device, task))
    few = more // 2
    shallow, deep = (one_step(device, replace(task, layers=count)) for count in (few, more))
    found: dict[str, Any] = {"layers": f"{few} and {more} of {depth}"} | extrapolated(
        shallow, deep, few, more, depth
    )
    if task.prompt == context.of_scale(START, 64):
        expected = extrapolated(shallow, deep, few, more, few + more)
        actual = vars(one_step(device, replace(task, layers=few + more)))
        found["check"] = {"layers": few + more, "expected": expected, "measured": actual}
    return found


def one_step(device: Device, task: Task) -> Step:
    """A step beside the room that AdamW's two states of the whole model take; a quick one again, behind the warm-up."""
    device.clean()
    trained = SHAPES[task.shape].parameters() if task.parameters == "full" else 0
    states = torch.empty(2 * trained, dtype=task.dtype, device=task.device)
    step = shared(task)
    seconds = device.seconds(step, warm=0)
    if seconds < QUICK:
        seconds = device.seconds(step, warm=0)
    peak = device.peak_gib()
    del states
    return Step(seconds, peak)


def extrapolated(shallow: Step, deep: Step, few: int, more: int, depth: int) -> dict[str, Any]:
    """Seconds and memory at `depth` layers from those at two: 10 and 14 GiB at 4 and 8 layers are 38 GiB at 32."""

    def at(one: float, other: float) -> float:
        return other + (depth - more) * (other - one) / (more - few)

    gib = None if shallow.peak_gib is None or deep.peak_gib is None else at(shallow.peak_gib, deep.peak_gib)
    return {"seconds": at(shallow.seconds, deep.seconds), "peak_gib": gib}
