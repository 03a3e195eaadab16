"""Checkpointing that recomputes a layer but not its attention: the kernels' outputs are kept from the forward.

With 32 layers a step then runs attention's forward 32 times, where `memory.checkpointing=full` runs it 64 times.
As torch's selective checkpointing, which does not fit here: it insists on the same operations in the forward
and in the recomputation, and ZeRO-3 gathers weights in the one that did not need to in the other.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from align.longseq.merge import attention_parts

# Operators whose outputs (attention and log-sum-exp) are kept; anything else in a layer is recomputed. Ours is
# one for all calls of a layer; the kernels by themselves are those of the plain path.
ATTENTION_OPS = frozenset({attention_parts._opoverload}) | frozenset(
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


class _Keeping(TorchDispatchMode):
    """Runs everything and keeps what attention kernels return."""

    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in ATTENTION_OPS:
            # Detached: autograd will hang the graph on `output` itself, which would then keep itself alive.
            self.kept.append(tree_map_only(Tensor, torch.Tensor.detach, output))
        return output


class _Returning(TorchDispatchMode):
    """Returns what was kept in place of running attention kernels again; each once."""

    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in ATTENTION_OPS:
            return func(*args, **(kwargs or {}))
        if not self.kept:
            raise RuntimeError(
                "A layer checkpointed with keep_attention can be gone through backward only once: "
                "use memory.checkpointing=full with retain_graph."
            )
        return self.kept.popleft()


def keep_attention_contexts() -> tuple[_Keeping, _Returning]:
    """What `torch.utils.checkpoint` takes as `context_fn`: around the forward, and around the recomputation."""
    kept: deque[Any] = deque()
    return _Keeping(kept), _Returning(kept)
