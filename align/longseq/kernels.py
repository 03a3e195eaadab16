"""Attention kernels by their names: torch's own, flash-attn's packages, and one with a cap on scores."""

from __future__ import annotations

import torch
from torch import Tensor

from align.longseq.capped import CappedKernel
from align.longseq.cudnn import CudnnKernel
from align.longseq.flash import load_flash
from align.longseq.kernel import Kernel
from align.longseq.settings import CUDNN, FLASH_MODULES, SOFTCAP
from align.longseq.torch_kernels import CpuKernel, CudaEfficientKernel, CudaFlashKernel

CAPPED = "capped"  # the name of capped.py's kernel, before its cap

_KERNELS: dict[str, Kernel] = {
    "cpu": CpuKernel(),
    "cuda_flash": CudaFlashKernel(),
    "cuda_efficient": CudaEfficientKernel(),
    CUDNN: CudnnKernel(),
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

    As `scaled_dot_product_attention` chooses (`sdp_utils.cpp`), but for widths that 8 does not divide, which are padded
    here and leave it without a fused kernel.

    Args:
        dtype: of query, key and value.
        width: D, of each.
        capability: of the GPU: `(8, 0)` is an A100, `(7, 5)` a T4.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    if half and capability >= (8, 0) and width <= 256 and not _backward_missing(width, capability):
        return "cuda_flash"
    oldest = {torch.float32: (5, 0), torch.float16: (5, 0), torch.bfloat16: (8, 0)}.get(dtype)
    return "cuda_efficient" if oldest is not None and capability >= oldest else None


def _backward_missing(width: int, capability: tuple[int, int]) -> bool:
    """Whether torch's FlashAttention has no gradient of such heads: 200 wide on an RTX 4090 (8.9) or 5090 (12.0)."""
    small = (8, 6) <= capability <= (8, 9) or (12, 0) <= capability <= (12, 1)
    return small and 192 < width <= 224
