"""Stage `speed`: a step against TRL's DPOTrainer and padded rows: same row, same weights, same card, bf16.

Answers of a row are equally long, so that padded rows need no mask and take the fastest kernel. `logo` has two rejected
answers, which TRL's trainer does not take; there padded rows through the library's forward are the rival.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.gpu.contestants import CONTESTANTS, Task
from benchmarks.gpu.context import Context
from benchmarks.gpu.environment import matrix_rate
from benchmarks.gpu.measuring import cost, profile

CONTESTANTS_OF = {
    "dpo": ("shared", "padded", "trl", "trl_fastest", "shared_liger"),
    "logo": ("shared", "padded", "shared_liger"),
}
OURS = ("shared", "shared_liger")
PROMPTS = (16384, 32768, 4096)  # in the order in which they are measured
ANSWER = 512


def run(context: Context) -> None:
    """LoRA before all parameters, `dpo` before `logo`; an 8B with LoRA at 32K; where a short step's time goes."""
    device, shape = context.device, context.of_scale("Qwen2.5-1.5B", "tiny")
    rate = matrix_rate(device, "bf16", size=context.of_scale(8192, 256))
    context.keep("bf16_tflops", rate)
    context.keep("shape", shape)
    answer, dtype = context.of_scale((ANSWER, torch.bfloat16), (8, torch.float32))
    found: dict[str, Any] = {}
    for parameters in ("lora", "full"):
        for prompt in context.of_scale(PROMPTS, (48,)):
            for method, names in CONTESTANTS_OF.items():
                answers = (answer,) * (2 if method == "dpo" else 3)
                task = Task(shape, parameters, method, prompt, answers, device.torch, dtype=dtype)
                found |= context.cells(
                    {
                        cell_name(task, name): partial(
                            cost, CONTESTANTS[name], task, device, rate=rate, shared=name in OURS
                        )
                        for name in names
                    }
                )
    deep, prompt = context.of_scale(("Llama-3-8B", 32768), ("tiny", 48))
    large = Task(deep, "lora", "dpo", prompt, (answer,) * 2, device.torch, dtype=dtype)
    context.cells(
        {
            f"{large.shape}, {cell_name(large, 'shared')}": partial(
                cost, CONTESTANTS["shared"], large, device, rate=rate, shared=True
            )
        }
    )
    context.keep("ratios", ratios(found))
    task = Task(shape, "lora", "dpo", context.of_scale(4096, 48), (answer,) * 2, device.torch, dtype=dtype)
    context.cells(
        {f"profile, {cell_name(task, 'shared')}": partial(profile, CONTESTANTS["shared"], task, device)}
    )


def cell_name(task: Task, contestant: str) -> str:
    """`dpo lora, 16384 + 512 + 512, trl`."""
    lengths = " + ".join(map(str, (task.prompt, *task.answers)))
    return f"{task.method} {task.parameters}, {lengths}, {contestant}"


def ratios(cells: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of every rival that was measured beside the shared prefix: its seconds over ours, and our memory over its own."""
    made = {}
    for name, rival in cells.items():
        job, _, contestant = name.rpartition(", ")
        ours = cells.get(f"{job}, shared")
        if contestant in OURS or not _measured(rival) or not _measured(ours):
            continue
        made[name] = {"speed": rival["seconds"] / ours["seconds"]}
        if rival["peak_gib"]:
            made[name]["memory"] = ours["peak_gib"] / rival["peak_gib"]
    return made


def _measured(cell: Any) -> bool:
    return isinstance(cell, dict) and "seconds" in cell
