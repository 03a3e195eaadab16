"""The launch of `align verify` as accelerate sees it."""

from __future__ import annotations

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin

from align.distributed.build_locks import warn_of_left_locks


def start_accelerator() -> Accelerator:
    """The launch as accelerate sees it, in fp32 whatever its configuration says about precision."""
    if not torch.accelerator.is_available():
        # accelerate counts one process under DeepSpeed on CPU unless told of the CPU before.
        PartialState(cpu=True)
    warn_of_left_locks()
    # A launch's `gradient_accumulation_steps: auto` is left to the trainer, which is not here.
    once, off = GradientAccumulationPlugin(num_steps=1), {"enabled": False}
    accelerator = Accelerator(mixed_precision="no", gradient_accumulation_plugin=once)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        one = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
        plugin.deepspeed_config |= {**one, "bf16": off, "fp16": off}
    return accelerator
