"""What `align plan` says of a task: the stages `length` and `planner` hold it against what they measure."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import hydra
import torch

from align.planning.here import available_memory
from align.planning.length import longest_prompt
from align.planning.planner import Plan, make_plan
from align.planning.search import HEADROOM
from benchmarks.gpu.contestants import RANK, Task
from benchmarks.gpu.shapes import SHAPES

# Part of a card's name → the group `gpus` that describes it.
GROUPS = {"H100": "h100_80gb", "H200": "h200", "A100": "a100_80gb", "4090": "rtx4090"}


def card_overrides(card: str, *, cuda: bool, rate: float) -> list[str]:
    """The group `gpus` as a user of this card sets it.

    Args:
        card: its name.
        cuda: whether it is a GPU.
        rate: TFLOP/s that were measured, for cards that no group describes: an H100's share of them is then assumed.
    """
    if not cuda:
        return ["gpus=cpu", f"gpus.peak_tflops={rate}"]
    group = next((group for part, group in GROUPS.items() if part in card), None)
    return ["gpus=h100_80gb", f"gpus.peak_tflops={rate}"] if group is None else [f"gpus={group}"]


def plan_of(task: Task, rate: float) -> Plan:
    """The plan of a task's own settings on this card, whose matrix rate was measured as `rate` TFLOP/s."""
    cuda = task.device.type == "cuda"
    card = torch.cuda.get_device_name(task.device) if cuda else "CPU"
    lora = RANK if task.parameters == "lora" else 0
    overrides = [
        f"method={task.method}",
        f"model.dtype={str(task.dtype)[6:]}",
        f"model.lora.r={lora}",
        "trainer.bf16=false",
        "trainer.gradient_accumulation_steps=1",
        f"rows.prompt={task.prompt}",
        f"rows.answer={task.answers[0]}",
        f"rows.rejected={len(task.answers) - 1}",
        *card_overrides(card, cuda=cuda, rate=rate),
        "gpus.count=1",
        *(
            f"memory.{'checkpointing' if key == 'mode' else key}={value}"
            for key, value in task.levers.items()
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        SHAPES[task.shape].config(task.layers).save_pretrained(folder)
        with hydra.initialize_config_module("hydra_conf", version_base="1.3"):
            return make_plan(hydra.compose("plan", [*overrides, f"model.path={folder}"]))


def longest_planned(task: Task, room: float) -> int:
    """Tokens of the longest prompt that a plan gives the task where tensors may fill `room` bytes."""
    plan = plan_of(task, rate=1.0)
    memory = (room + plan.machine.runtime) / HEADROOM  # the share of it that a plan fills
    machine = replace(plan.machine, memory=memory, host_memory=available_memory())
    return longest_prompt(plan.sizes, plan.job, plan.given.strategy, machine)
