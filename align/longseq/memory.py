"""Memory levers of the long-sequence forward: which activations are kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from align.errors import UserError
from align.longseq.keep_attention import keep_attention_contexts
from align.longseq.support import find_causal_lm

# What `memory.checkpointing` may name → keywords of torch.utils.checkpoint; None leaves every activation.
CHECKPOINTING: dict[str, dict[str, Any] | None] = {
    "none": None,
    "full": {"use_reentrant": False},
    "keep_attention": {
        "use_reentrant": False,
        "context_fn": keep_attention_contexts,
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
