"""Memory levers of the long-sequence forward: which activations are kept for the backward pass, and where.

Activation checkpointing is meant, not the checkpoints of a run (`align.runs.checkpoints`): of a layer of 32 only its
input is kept, and its forward runs a second time when the backward pass comes to it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align.core.errors import UserError
from align.longseq.keep_attention import keep_attention_contexts
from align.longseq.offload import make_store
from align.longseq.settings import DEFAULT_PREFETCH, check_memory
from align.longseq.store import Store
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
            run = partial(tiled_layer, layer, size=self.mlp_chunk, recomputing=recomputing)
        with nullcontext() if self.store is None else self.store.hooks():
            return checkpoint(
                run, hidden, *others, use_reentrant=False, context_fn=lambda: (forward, recomputing)
            )


def apply_checkpointing(
    model: nn.Module,
    mode: str,
    *,
    mlp_chunk: int | None = None,
    offload: str = "none",
    offload_folder: str | None = None,
    prefetch: int = DEFAULT_PREFETCH,
) -> None:
    """Turns on gradient checkpointing of every decoder layer.

    Args:
        model: the policy, wrapped by PEFT or not.
        mode: `none`; `full` keeps only each layer's input (layers · T · hidden · bytes); `keep_attention`
            also keeps attention outputs, about as much again, and saves the second attention forward.
        mlp_chunk: tokens over which everything in a layer but attention is run at once; None is all.
        offload: where the layers' inputs wait: `none` in place, `host` in pinned memory, `disk` in a file.
        offload_folder: where that file lies; None is the temporary folder.
        prefetch: how many layers' inputs come back before the backward pass asks for them.

    Raises:
        UserError: as `check_memory`, the folder cannot be written, or the class has no checkpointing.
    """
    check_memory(mode, mlp_chunk=mlp_chunk, offload=offload, offload_folder=offload_folder, prefetch=prefetch)
    contexts = CHECKPOINTING[mode]
    if contexts is None:
        return
    lm = find_causal_lm(model)
    if not lm.supports_gradient_checkpointing:
        raise UserError(
            f"{type(lm).__name__} has no layers that could be checkpointed: set memory.checkpointing=none."
        )
    enable: Callable[..., None] = lm.activation_checkpointing_enable
    enable()
    store = make_store(offload, offload_folder, prefetch=prefetch)
    # The library's own checkpointing takes keywords of torch's function only; its layers take any function.
    lm._set_gradient_checkpointing(
        enable=True,
        gradient_checkpointing_func=LayerCheckpoint(contexts, mlp_chunk, store),
    )
