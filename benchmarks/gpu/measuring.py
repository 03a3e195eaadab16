"""What a step of a task costs: seconds, tokens, memory, and its share of what the card reaches."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from benchmarks.gpu.contestants import Step, Task
from benchmarks.gpu.device import Device
from benchmarks.gpu.shapes import SHAPES, pairs

NAME = 80  # characters of a kernel's name that are kept


def cost(
    make: Callable[[Task], Step], task: Task, device: Device, *, rate: float, shared: bool
) -> dict[str, Any]:
    """A step of one contestant, after one that does not count.

    Args:
        make: of CONTESTANTS.
        task: what is trained.
        device: where.
        rate: TFLOP/s of a product of matrices in bf16 there.
        shared: whether the contestant reads the prompt once, which its own FLOPs follow from.

    Returns:
        `seconds` of forward and backward, `tokens_per_s` of the row (its prompt once, whoever reads it more often),
        `peak_gib`, `model_gib` before the step, `loss`, and `mfu`: FLOPs of the tokens that the contestant reads,
        without recomputation, over its seconds and the card's measured rate.
    """
    with restored(SHAPES[task.shape].kind):
        step = make(task)
        device.clean()
        model_gib = device.held_gib()
        loss = step().item()
        seconds = device.seconds(step, warm=0)
    flops = step_flops(task, shared=shared)
    return {
        "seconds": seconds,
        "tokens_per_s": (task.prompt + sum(task.answers)) / seconds,
        "peak_gib": device.peak_gib(),
        "model_gib": model_gib,
        "loss": loss,
        "mfu": flops / seconds / (rate * 1e12),
    }


@contextmanager
def restored(kind: str) -> Iterator[None]:
    """Behind it the architecture's module in transformers is as it was: Liger replaces functions in it for all."""
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    before = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(before)


def profile(make: Callable[[Task], Step], task: Task, device: Device) -> dict[str, Any]:
    """Where a step's time goes: milliseconds of the 20 largest operations, and the share of the step that all fill.

    On a GPU these are its kernels; where they fill little of the step, the GPU waits for its host. `seconds` are those
    of a step that is not watched, which is shorter.
    """
    with restored(SHAPES[task.shape].kind):
        step = make(task)
        step()
        seconds = device.seconds(step, warm=0)
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.cuda else [])]
        with torch.profiler.profile(activities=kinds) as trace:
            device.seconds(step, warm=0, most=1)
    spent = operations(trace.key_averages(), cuda=device.cuda)
    return {
        "seconds": seconds,
        "busy": sum(spent.values()) / 1e3 / seconds,
        "milliseconds": dict(sorted(spent.items(), key=lambda one: -one[1])[:20]),
    }


def operations(events: Iterable[Any], *, cuda: bool) -> dict[str, float]:
    """Milliseconds of each kernel, or of each operation of a CPU; those whose long names begin alike are one."""
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        if event.device_type == kind:
            spent[event.key[:NAME]] += (
                event.self_device_time_total if cuda else event.self_cpu_time_total
            ) / 1e3
    return spent


def step_flops(task: Task, *, shared: bool) -> float:
    """FLOPs of a step: forward, backward (twice it, or once where weights are frozen), and a reference's forward.

    Recomputation is not counted, nor LoRA's own small products. 1.3e9 weights in layers that all train, on 1,000 tokens
    and with attention left out: 3 · 2 · 1.3e9 · 1,000 = 7.8e12.
    """
    of_token, of_pair, of_scored = SHAPES[task.shape].flops(task.layers)
    scored = sum(task.answers)
    tokens = scored + task.prompt * (1 if shared else len(task.answers))
    layers, attention = of_token * tokens, of_pair * pairs(task.prompt, task.answers, shared=shared)
    head = of_scored * scored
    frozen = task.parameters == "lora"
    trained = layers * (2 if frozen else 3) + attention * 3 + head * (2 if frozen else 3)
    reference = layers + attention + head if task.loss().needs.reference != "none" else 0.0
    return trained + reference


def out_of_memory(error: BaseException) -> bool:
    """Whether a step did not fit, on the device or on the host."""
    return (
        isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower()
    )
