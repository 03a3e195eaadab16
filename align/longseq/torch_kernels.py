"""Attention kernels of torch that return their log-sum-exp and take a merged one back, as `kernels.Kernel`s.

They are the ones behind `scaled_dot_product_attention`, called by their operators because the function hides
the log-sum-exp. torch's context parallelism calls them the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from align.longseq.aligned import aligned
from align.longseq.kernel import Squares

_aten = torch.ops.aten


class CpuKernel:
    """torch's flash attention for CPU: fp64, fp32, fp16, bf16, strided, grouped heads unexpanded.

    A causal square of a few hundred tokens takes as long as a rectangle of that size, twice as long as its pairs.
    """

    varlen = False
    unlike = False
    halved = range(192, 1536)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, squares: Squares, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        return _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, bool(squares), scale=scaling
        )

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
        return _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, query, key, value, output, lse, 0.0, bool(squares), scale=scaling
        )


class CudaFlashKernel:
    """torch's FlashAttention for CUDA from Ampere on: fp16 and bf16, grouped heads unexpanded.

    Widths up to 256, padded to a multiple of 8; above 192 not on every card, see `kernels.cuda_kernel`.
    """

    varlen = False
    unlike = False
    halved = range(0)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, squares: Squares, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        width = query.shape[3]
        query, key, value = (aligned(states) for states in (query, key, value))
        output, lse, *_ = _aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, bool(squares), scale=scaling
        )
        return output[..., :width], lse

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
        width = query.shape[3]
        states = [aligned(one) for one in (gradient, query, key, value, output)]
        # What a forward without dropout leaves there: nothing in the random state is read.
        random = torch.empty(2, dtype=torch.uint64, device=query.device)
        unused = torch.empty((), dtype=torch.uint64, device=query.device)
        lengths = (query.shape[2], key.shape[2])
        gradients = _aten._scaled_dot_product_flash_attention_backward(
            *states, lse.contiguous(), None, None, *lengths, 0.0, bool(squares), random, unused, scale=scaling
        )
        return tuple(one[..., :width] for one in gradients)  # type: ignore[return-value]


class CudaEfficientKernel:
    """torch's memory-efficient attention for CUDA: fp32, fp16, from Ampere on bf16; grouped heads are expanded.

    Widths of any size, padded to a multiple of 8.
    """

    varlen = False
    unlike = False
    halved = range(0)
    _ALIGNED = 32  # its log-sum-exp is padded to a multiple of this

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, squares: Squares, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        width, shared = query.shape[3], query.shape[1] // key.shape[1]
        query, key, value = (aligned(states) for states in (query, key, value))
        key, value = (states.repeat_interleave(shared, dim=1) for states in (key, value))
        output, lse, *_ = _aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, bool(squares), scale=scaling
        )
        return output[..., :width], lse[..., : query.shape[2]]

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
        width, shared = query.shape[3], query.shape[1] // key.shape[1]
        gradient, query, key, value, output = (
            aligned(states) for states in (gradient, query, key, value, output)
        )
        expanded = [states.repeat_interleave(shared, dim=1) for states in (key, value)]
        # Infinity makes the padding's weights exp(−∞) = 0.
        lse = pad(lse, (0, -lse.shape[2] % self._ALIGNED), value=torch.inf)
        random = torch.empty((), dtype=torch.long, device=query.device)
        wanted = (True, True, True, False)
        grad_query, *grads, _ = _aten._scaled_dot_product_efficient_attention_backward(
            gradient, query, *expanded, None, output, lse, random, random, 0.0, wanted, bool(squares),
            scale=scaling,
        )  # fmt: skip
        grad_key, grad_value = (one.unflatten(1, (-1, shared)).sum(2)[..., :width] for one in grads)
        return grad_query[..., :width], grad_key, grad_value
