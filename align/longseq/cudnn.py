"""`model.attention=cudnn`: cuDNN's attention for large causal squares, as torch calls it on an H100 or a B200.

There torch's own function prefers cuDNN to FlashAttention 2, which was built for the generation before. cuDNN makes a
plan for every new size, some 30 milliseconds each, so that a prompt's square is its, and answers are FlashAttention's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.longseq.aligned import aligned
from align.longseq.kernel import Squares
from align.longseq.torch_kernels import CudaFlashKernel

_aten = torch.ops.aten
LEAST = 4096  # tokens of a square that is worth a plan
WIDEST = 128  # of its heads, forward and backward


class CudnnKernel(CudaFlashKernel):
    """fp16 and bf16, grouped heads unexpanded; what it leaves to `CudaFlashKernel` is computed there.

    Args:
        least: tokens of the smallest square that is cuDNN's.
    """

    def __init__(self, least: int = LEAST) -> None:
        self._least = least

    def _takes(self, query: Tensor, squares: Squares) -> bool:
        return bool(squares) and query.shape[2] >= self._least and query.shape[3] <= WIDEST

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, squares: Squares, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        if not self._takes(query, squares):
            return super().forward(query, key, value, squares, scaling)
        width = query.shape[3]
        query, key, value = (aligned(states) for states in (query, key, value))
        output, lse, *_ = _aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, True, 0.0, True, scale=scaling
        )
        return output[..., :width], lse.squeeze(3)  # its log-sum-exps are `[B, h, q, 1]`

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        squares: Squares,
        scaling: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        if not self._takes(query, squares):
            return super().backward(gradient, query, key, value, output, lse, squares, scaling)
        width = query.shape[3]
        states = [aligned(one) for one in (gradient, query, key, value, output)]
        unused = torch.empty((), dtype=torch.long, device=query.device)  # the random state of no dropout
        gradients = _aten._scaled_dot_product_cudnn_attention_backward(
            *states, lse.contiguous().unsqueeze(3), unused, unused, None, None, None, query.shape[2],
            key.shape[2], 0.0, True, scale=scaling,
        )  # fmt: skip
        return tuple(one[..., :width] for one in gradients)  # type: ignore[return-value]
