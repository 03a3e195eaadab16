"""Attention kernels that return their log-sum-exp and take a merged one back: torch's own, flash-attn's by name.

They are the ones behind `scaled_dot_product_attention`, called by their operators because the function hides
the log-sum-exp. torch's context parallelism calls them the same way.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from align.longseq.capped import CappedKernel
from align.longseq.flash import load_flash
from align.longseq.settings import FLASH_MODULES, SOFTCAP

_aten = torch.ops.aten
CAPPED = "capped"  # the name of capped.py's kernel, before its cap

# Sizes of a part's causal squares; empty for a rectangle, where every query sees every key. See parts.Part.
Squares = tuple[int, ...]


class Kernel(Protocol):
    """Forward and backward of one attention call; h query heads are a multiple of k key-value heads."""

    varlen: bool  # whether one call takes squares of any sizes; else a batch of equal ones
    halved: range  # sizes of causal squares that cost more than two of half the size and a rectangle

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, squares: Squares, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """`[B, h, q, D]`, `[B, k, n, D]` twice → output `[B, h, q, D]` and log-sum-exp `[B, h, q]`.

        Where a call takes several squares, B is 1; else it counts calls of one shape that are done at once.
        """
        ...

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
        """Gradients of query, key and value; output and log-sum-exp are the merged ones."""
        ...


class CpuKernel:
    """torch's flash attention for CPU: fp64, fp32, fp16, bf16, strided, grouped heads unexpanded.

    A causal square of a few hundred tokens takes as long as a rectangle of that size, twice as long as its pairs.
    """

    varlen = False
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

    Widths up to 256, padded to a multiple of 8.
    """

    varlen = False
    halved = range(0)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, squares: Squares, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        width = query.shape[3]
        query, key, value = (_pad_width(states) for states in (query, key, value))
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
        states = [_pad_width(one) for one in (gradient, query, key, value, output)]
        # What a forward without dropout leaves there: nothing in the random state is read.
        random = torch.empty(2, dtype=torch.uint64, device=query.device)
        unused = torch.empty((), dtype=torch.uint64, device=query.device)
        lengths = (query.shape[2], key.shape[2])
        gradients = _aten._scaled_dot_product_flash_attention_backward(
            *states, lse.contiguous(), None, None, *lengths, 0.0, bool(squares), random, unused, scale=scaling
        )
        return tuple(one[..., :width] for one in gradients)  # type: ignore[return-value]


class CudaEfficientKernel:
    """torch's memory-efficient attention for CUDA: fp32, widths that 4 divides; grouped heads are expanded."""

    varlen = False
    halved = range(0)
    _ALIGNED = 32  # its log-sum-exp is padded to a multiple of this

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, squares: Squares, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        shared = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(shared, dim=1) for states in (key, value))
        output, lse, *_ = _aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, bool(squares), scale=scaling
        )
        return output, lse[..., : query.shape[2]]

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
        batch, heads, length, width = key.shape
        shared = query.shape[1] // heads
        expanded = [states.repeat_interleave(shared, dim=1) for states in (key, value)]
        # Infinity makes the padding's weights exp(−∞) = 0.
        lse = pad(lse, (0, -lse.shape[2] % self._ALIGNED), value=torch.inf)
        random = torch.empty((), dtype=torch.long, device=query.device)
        wanted = (True, True, True, False)
        grad_query, *grads, _ = _aten._scaled_dot_product_efficient_attention_backward(
            gradient, query, *expanded, None, output, lse, random, random, 0.0, wanted, bool(squares),
            scale=scaling,
        )  # fmt: skip
        grad_key, grad_value = (one.view(batch, heads, shared, length, width).sum(2) for one in grads)
        return grad_query, grad_key, grad_value


def _pad_width(states: Tensor) -> Tensor:
    """`[…, D]` with zeros up to a multiple of 8, which changes no score: a width of 60 becomes 64."""
    missing = -states.shape[-1] % 8
    return pad(states, (0, missing)) if missing else states


_KERNELS: dict[str, Kernel] = {
    "cpu": CpuKernel(),
    "cuda_flash": CudaFlashKernel(),
    "cuda_efficient": CudaEfficientKernel(),
}


def kernel_named(name: str) -> Kernel:
    """A kernel by its name: torch's, flash.py's, whose package is imported here and not before, or one with a cap."""
    if name not in _KERNELS:
        kind, _, softcap = name.partition(SOFTCAP)
        register_kernel(name, CappedKernel(float(softcap)) if kind == CAPPED else load_flash(name))
    return _KERNELS[name]


def with_softcap(kernel: str | None, softcap: float) -> str:
    """The name of a kernel whose scores are capped, `c · tanh(s / c)`: FlashAttention's own, else capped.py's."""
    return f"{kernel if kernel in FLASH_MODULES else CAPPED}{SOFTCAP}{softcap}"


def register_kernel(name: str, kernel: Kernel) -> None:
    """Makes a kernel known by a name, which is what an operator can carry."""
    _KERNELS[name] = kernel


def sdpa_kernel(query: Tensor, value: Tensor) -> str | None:
    """The kernel that `scaled_dot_product_attention` takes for such tensors; None where none has a merge.

    Args:
        query: `[1, h, Q, D]`.
        value: `[1, k, T, E]`.
    """
    if query.shape[3] != value.shape[3]:
        return None
    if query.device.type == "cpu":
        return "cpu"
    if query.device.type == "cuda":
        # Without a GPU a tensor is a stand-in, of which only its form counts.
        capability = torch.cuda.get_device_capability(query.device) if torch.cuda.is_available() else (8, 0)
        return cuda_kernel(query.dtype, query.shape[3], capability)
    return None


def cuda_kernel(dtype: torch.dtype, width: int, capability: tuple[int, int]) -> str | None:
    """The kernel of torch's for one type and width on a GPU; None where both of ours would end in an error.

    Args:
        dtype: of query, key and value.
        width: D, of each.
        capability: of the GPU: `(8, 0)` is an A100, `(7, 5)` a T4.
    """
    if dtype in (torch.float16, torch.bfloat16) and width <= 256 and capability >= (8, 0):
        return "cuda_flash"
    if dtype == torch.float32 and width % 4 == 0 and capability >= (5, 0):
        return "cuda_efficient"
    return None
