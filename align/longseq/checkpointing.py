"""Memory levers of the long-sequence forward: which activations are kept for the backward pass, and where.

Activation checkpointing is meant, not the checkpoints of a run (`align.runs.checkpoints`): of a layer of 32 only its
input is kept, and its forward runs a second time when the backward pass comes to it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align.core.config import check_choice
from align.core.errors import UserError
from align.longseq.keep_attention import keep_attention_contexts
from align.longseq.offload import Store, make_store
from align.longseq.tiling import Recomputing, tiled_layer
from align.models.structure import find_causal_lm

# Contexts around a layer's forward and around its recomputation.
Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


def _no_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), nullcontext()


# What `memory.checkpointing` may name → the contexts of torch.utils.checkpoint; None leaves every activation.
CHECKPOINTING: dict[str, Contexts | None] = {
    "none": None,
    "full": _no_contexts,
    "keep_attention": keep_attention_contexts,
}
OFFLOAD = ("none", "host", "disk")


@dataclass(frozen=True)
class LayerCheckpoint:
    """How a decoder layer is run and recomputed: transformers' layers call this in place of themselves.

    Attributes:
        contexts: of the mode of checkpointing.
        mlp_chunk: tokens of a tile; None runs the layer over all at once.
        store: where the layer's input waits; None keeps it.
    """

    contexts: Contexts
    mlp_chunk: int | None = None
    store: Store | None = None

    def __call__(self, layer: partial[Tensor], hidden: Tensor, *others: Any) -> Tensor:
        """`layer(hidden, *others)`; of the forward only the arguments are kept, and what the mode keeps."""
        forward, recompute = self.contexts()
        recomputing = Recomputing(recompute)
        run: Callable[..., Tensor] = layer
        if self.mlp_chunk is not None:
            if others:
                raise UserError(
                    f"{type(layer.args[0]).__name__} takes more than hidden states by position, "
                    "which memory.mlp_chunk cannot tile: set memory.mlp_chunk=null."
                )
            run = partial(tiled_layer, layer, size=self.mlp_chunk, recomputing=recomputing)
        with nullcontext() if self.store is None else self.store.hooks():
            return checkpoint(
                run, hidden, *others, use_reentrant=False, context_fn=lambda: (forward, recomputing)
            )


def check_memory(
    checkpointing: str,
    *,
    mlp_chunk: int | None = None,
    offload: str = "none",
    offload_folder: str | None = None,
    accelerator: bool = True,
) -> None:
    """Refuses settings that contradict each other, before a model is loaded.

    Args:
        checkpointing: as the key of the group `memory`, like the next three.
        mlp_chunk: tokens, or None.
        offload: `none`, `host` or `disk`.
        offload_folder: an existing folder, or None.
        accelerator: whether the model will be on one.

    Raises:
        UserError: names the key, and what to set instead.
    """
    check_choice("memory.checkpointing", checkpointing, CHECKPOINTING)
    check_choice("memory.offload", offload, OFFLOAD)
    if mlp_chunk is not None and mlp_chunk < 1:
        raise UserError(f"memory.mlp_chunk={mlp_chunk} must be a number of tokens, from 1 on, or null.")
    for key, value, unset in (("mlp_chunk", mlp_chunk, None), ("offload", offload, "none")):
        if checkpointing == "none" and value != unset:
            raise UserError(
                f"memory.{key}={value} works on checkpointed layers: set memory.checkpointing=full or keep_attention."
            )
    if offload == "host" and not accelerator:
        raise UserError(
            "memory.offload=host moves activations off an accelerator, and this run is on the CPU: "
            "set memory.offload=disk or none."
        )
    if offload_folder is None:
        return
    if offload != "disk":
        raise UserError(f"memory.offload_folder={offload_folder} is read with memory.offload=disk only.")
    if not Path(offload_folder).is_dir():
        raise UserError(f"memory.offload_folder={offload_folder} is not a folder: make it, or name another.")


def apply_checkpointing(
    model: nn.Module,
    mode: str,
    *,
    mlp_chunk: int | None = None,
    offload: str = "none",
    offload_folder: str | None = None,
) -> None:
    """Turns on gradient checkpointing of every decoder layer.

    Args:
        model: the policy, wrapped by PEFT or not.
        mode: `none`; `full` keeps only each layer's input (layers · T · hidden · bytes); `keep_attention`
            also keeps attention outputs, about as much again, and saves the second attention forward.
        mlp_chunk: tokens over which everything in a layer but attention is run at once; None is all.
        offload: where the layers' inputs wait: `none` in place, `host` in pinned memory, `disk` in a file.
        offload_folder: where that file lies; None is the temporary folder.

    Raises:
        UserError: as `check_memory`, or the folder cannot be written.
    """
    check_memory(mode, mlp_chunk=mlp_chunk, offload=offload, offload_folder=offload_folder)
    contexts = CHECKPOINTING[mode]
    if contexts is None:
        return
    lm = find_causal_lm(model)
    enable: Callable[..., None] = lm.activation_checkpointing_enable
    enable()
    # The library's own checkpointing takes keywords of torch's function only; its layers take any function.
    lm._set_gradient_checkpointing(
        enable=True,
        gradient_checkpointing_func=LayerCheckpoint(contexts, mlp_chunk, make_store(offload, offload_folder)),
    )
