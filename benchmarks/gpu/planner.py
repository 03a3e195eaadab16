"""Stage `planner`: what `align plan` predicts of memory and seconds, against runs of the trainer with AdamW.

A prediction's memory is held against what torch has allocated at most; what a process needs beside (`runtime_gb`) is
measured apart. Seconds are predicted by the group `gpus` of the card (plans.py); the share of its peak that would have
been right (`mfu`) stands beside.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.gpu.contestants import Task, shared_trainer
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import GIB, Device
from benchmarks.gpu.environment import matrix_rate
from benchmarks.gpu.plans import plan_of

KEEP, TILES = {"mode": "keep_attention"}, {"mode": "full", "mlp_chunk": 4096}
# Shape, what trains, method, tokens of the prompt, levers.
CASES: tuple[tuple[str, str, str, int, dict[str, Any]], ...] = (
    ("Qwen2.5-1.5B", "lora", "dpo", 8192, KEEP),
    ("Qwen2.5-1.5B", "full", "logo", 8192, KEEP),
    ("Llama-3-8B", "lora", "simpo", 16384, KEEP),
    ("Qwen2.5-1.5B", "lora", "logo", 32768, TILES),
    ("Qwen2.5-0.5B", "full", "dpo", 4096, {"mode": "none"}),
    ("Llama-3-8B", "lora", "logo", 16384, TILES | {"offload": "host"}),
)
SMALL = (
    ("tiny", "lora", "dpo", 64, KEEP),
    ("tiny", "full", "logo", 64, {"mode": "full", "mlp_chunk": 32}),
)
STEPS = 2  # the first one makes the optimizer's state, the second one is timed


def run(context: Context) -> None:
    """A cell for each configuration."""
    device = context.device
    rate = matrix_rate(device, "bf16", size=context.of_scale(8192, 256))
    answer, dtype = context.of_scale((512, torch.bfloat16), (8, torch.float32))
    work = {}
    for shape, parameters, method, prompt, levers in context.of_scale(CASES, SMALL):
        answers = (answer,) * (3 if method == "logo" else 2)
        task = Task(shape, parameters, method, prompt, answers, device.torch, levers=levers, dtype=dtype)
        said = " ".join(f"{key}={value}" for key, value in levers.items())
        work[f"{method} {parameters}, {shape}, {prompt}, {said}"] = partial(compare, task, device, rate)
    context.cells(work)


def compare(task: Task, device: Device, rate: float) -> dict[str, Any]:
    """Prediction and measurement, the relative error of each, and the share of the matrix rate that was reached."""
    plan = plan_of(task, rate)
    memory, seconds, mfu = plan.given.memory, plan.given.time.total, plan.machine.mfu
    device.clean()
    timed = _StepSeconds(device)
    trainer = shared_trainer(
        task, train_dataset=[task.example()], max_steps=STEPS, optim="adamw_torch", logging_strategy="no"
    )
    trainer.add_callback(timed)
    trainer.train()
    peak, took = device.peak_gib(), timed.last
    planned = (memory.total - memory.runtime) / GIB
    return {
        "predicted": {"gib": planned, "seconds": seconds, "phase": memory.phase},
        "measured": {"gib": peak, "seconds": took},
        "error": {"memory": None if peak is None else planned / peak - 1, "time": seconds / took - 1},
        "mfu": {"assumed": mfu, "reached": mfu * seconds / took},
        "runtime_gib": {"assumed": memory.runtime / GIB, "measured": _runtime(device)},
    }


def _runtime(device: Device) -> float | None:
    """GiB of the card that are taken and that torch has not reserved: the context, and other processes."""
    if not device.cuda:
        return None
    free, total = torch.cuda.mem_get_info()
    return (total - free - torch.cuda.memory_reserved()) / GIB


class _StepSeconds(TrainerCallback):
    """Seconds of the last step, the optimizer's included."""

    last = 0.0

    def __init__(self, device: Device) -> None:
        self._device, self._start = device, 0.0

    def on_step_begin(self, *given: Any, **more: Any) -> None:
        self._device.synchronize()
        self._start = time.perf_counter()

    def on_step_end(self, *given: Any, **more: Any) -> None:
        self._device.synchronize()
        self.last = time.perf_counter() - self._start
