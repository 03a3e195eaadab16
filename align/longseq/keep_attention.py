"""Checkpointing that recomputes a layer but not its attention: the kernels' outputs are kept from the forward.

With 32 layers a step then runs attention's forward 32 times, where `memory.checkpointing=full` runs it 64 times.
As torch's selective checkpointing, which does not fit here: it insists on the same operations in the forward
and in the recomputation, and ZeRO-3 gathers weights in the one that did not need to in the other. It also asks Python
about every operation of a layer, which takes a GPU's host longer than a short row takes the GPU; our attention says
itself what is to be kept (kept.py), and only the library's is found among all operations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from align.longseq.kept import Keeper, Keeping, Returning, current_keeper

# The library's attention as operators; anything else in a layer is recomputed.
ATTENTION_OPS = frozenset(
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


class _Operators(TorchDispatchMode):
    """Hands the calls of attention's operators to a keeper."""

    def __init__(self, keeper: Keeper) -> None:
        super().__init__()
        self._keeper = keeper

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        run: Callable[[], Any] = partial(func, *args, **(kwargs or {}))
        return self._keeper(run) if func in ATTENTION_OPS else run()


def operators_kept() -> AbstractContextManager[Any]:
    """Around attention by the library's operators in a layer of which ours is kept: those are, too."""
    keeper = current_keeper()
    return nullcontext() if keeper is None else _Operators(keeper)


def keep_attention_contexts(
    layer: partial[Tensor],
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What `torch.utils.checkpoint` takes as `context_fn`: around the forward, and around the recomputation.

    Args:
        layer: with its keywords; a row's `layout` is among them where the attention is ours.
    """
    kept: deque[Any] = deque()
    keepers = Keeping(kept), Returning(kept)
    if "layout" in layer.keywords:
        return keepers
    keeping, returning = (_Operators(keeper) for keeper in keepers)
    return keeping, returning
