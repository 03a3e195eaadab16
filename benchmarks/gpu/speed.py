"""Stage `speed`: a step against TRL's DPOTrainer and padded rows: same row, same weights, same card, bf16.

Answers of a row are equally long, so that padded rows need no mask and take the fastest kernel. `logo` has two rejected
answers, which TRL's trainer does not take; there padded rows through the library's forward are the rival.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.gpu.contestants import CONTESTANTS, Task
from benchmarks.gpu.context import Context
from benchmarks.gpu.environment import matrix_rate
from benchmarks.gpu.measuring import cost, profile
from benchmarks.gpu.summary import ratios

CONTESTANTS_OF = {
    "dpo": ("shared", "padded", "trl", "trl_fastest", "shared_cudnn", "shared_cudnn_liger", "shared_liger"),
    "logo": ("shared", "padded", "shared_cudnn", "shared_liger"),
}
PARAMETERS = ("lora", "full")
OURS = ("shared", "shared_liger", "shared_cudnn", "shared_cudnn_liger")
PROMPTS = (16384, 32768, 4096)  # in the order in which they are measured
ANSWER = 512


def run(context: Context) -> None:
    """A prompt of 16K with LoRA and all parameters; an 8B; where a step's time goes; then the other prompts."""
    device = context.device
    rate = matrix_rate(device, "bf16", size=context.of_scale(8192, 256))
    context.keep("bf16_tflops", rate)
    shape, answer, dtype = context.of_scale(
        ("Qwen2.5-1.5B", ANSWER, torch.bfloat16), ("tiny", 8, torch.float32)
    )

    def task(parameters: str, method: str, prompt: int) -> Task:
        answers = (answer,) * (2 if method == "dpo" else 3)
        return Task(shape, parameters, method, prompt, answers, device.torch, dtype=dtype)

    def timed(made: Task, *names: str, said: str = "") -> dict[str, Callable[[], Any]]:
        way = partial(cost, device=device, rate=rate)
        return {
            f"{said}{cell_name(made, name)}": partial(way, CONTESTANTS[name], made, shared=name in OURS)
            for name in names
        }

    first, *later = context.of_scale(PROMPTS, (48,))
    work = {}
    for prompt, parameters, (method, names) in product((first,), PARAMETERS, CONTESTANTS_OF.items()):
        work |= timed(task(parameters, method, prompt), *names)
    deep, prompt = context.of_scale(("Llama-3-8B", 32768), ("tiny", 48))
    work |= timed(replace(task("lora", "dpo", prompt), shape=deep), "shared", said=f"{deep}, ")
    for prompt, name in product(context.of_scale((4096, 16384), (48,)), ("shared", "trl")):
        watched = task("lora", "dpo", prompt)
        work[f"profile, {cell_name(watched, name)}"] = partial(profile, CONTESTANTS[name], watched, device)
    for prompt, parameters, (method, names) in product(later, PARAMETERS, CONTESTANTS_OF.items()):
        work |= timed(task(parameters, method, prompt), *names)
    context.keep("ratios", ratios(context.cells(work)))


def cell_name(task: Task, contestant: str) -> str:
    """`dpo lora, 16384 + 512 + 512, trl`."""
    lengths = " + ".join(map(str, (task.prompt, *task.answers)))
    return f"{task.method} {task.parameters}, {lengths}, {contestant}"
