"""Memory levers of the long-sequence forward: which activations are kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from align.errors import UserError
from align.longseq.support import find_causal_lm

# Attention kernels whose output and log-sum-exp are kept; anything else in a layer is recomputed.
_ATTENTION_OPS = tuple(
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_flash_attention_forward",
    )
    if hasattr(torch.ops.aten, name)
)


def _keep_attention(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _ATTENTION_OPS else CheckpointPolicy.PREFER_RECOMPUTE


# What `memory.checkpointing` may name → keywords of torch.utils.checkpoint; None leaves every activation.
CHECKPOINTING: dict[str, dict[str, Any] | None] = {
    "none": None,
    "full": {"use_reentrant": False},
    "keep_attention": {
        "use_reentrant": False,
        "context_fn": partial(create_selective_checkpoint_contexts, _keep_attention),
    },
}


def apply_checkpointing(model: nn.Module, mode: str) -> None:
    """Turns on gradient checkpointing of every decoder layer.

    Args:
        model: the policy, wrapped by PEFT or not.
        mode: `none`; `full` keeps only each layer's input (layers · T · hidden · bytes); `keep_attention`
            also keeps attention outputs, about as much again, and saves the second attention forward.

    Raises:
        UserError: unknown mode.
    """
    if mode not in CHECKPOINTING:
        raise UserError(f"memory.checkpointing={mode} is not known: use {', '.join(CHECKPOINTING)}.")
    lm = find_causal_lm(model)
    keywords = CHECKPOINTING[mode]
    if keywords is None:
        return
    enable: Callable[..., None] = lm.activation_checkpointing_enable
    enable(activation_checkpointing_kwargs=dict(keywords))
