"""FlashAttention 2, 3 and 4 by their packages, imported when first used.

All take sequences of unlike length one after the other, `[total, heads, D]`, with cumulative lengths from 0,
int32, on the device. Their differentiable functions (`flash_attn_varlen_func`) hide the log-sum-exp's place in
the backward, so the pair below them is called: FlashAttention 2.8's `_flash_attn_varlen_forward`, `…_backward`,
FlashAttention 3's `_flash_attn_forward`, `_flash_attn_backward`, by position, which its versions share, and
FlashAttention 4's `_flash_attn_fwd`, `_flash_attn_bwd` (4.0.0b36), by keyword. With `causal=True` the mask is aligned
to the bottom right; the squares here have as many queries as keys.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from align.core.errors import UserError
from align.longseq.aligned import aligned
from align.longseq.moving import to_device
from align.longseq.settings import FLASH_MODULES, SOFTCAP

# `(q, k, v, cu_q, cu_k, max_q, max_k, scaling, causal) -> (output, log-sum-exp [h, total])`
Forward = Callable[..., tuple[Tensor, Tensor]]
# `(gradient, q, k, v, output, lse, dq, dk, dv, cu_q, cu_k, max_q, max_k, scaling, causal)`, into dq, dk, dv
Backward = Callable[..., None]


def load_flash(name: str, *, module: Any = None) -> FlashKernel:
    """The kernel behind `model.attention=flash2`, `flash3` or `flash4`.

    Args:
        name: a key of `FLASH_MODULES`, or what `with_softcap` makes of it.
        module: stands in for the package's module; None imports it.

    Raises:
        UserError: the package cannot be imported, or has other functions than those that are called here.
    """
    name, _, softcap = name.partition(SOFTCAP)
    path, source = FLASH_MODULES[name]
    if module is None:
        try:
            module = importlib.import_module(path)
        except ImportError as error:
            raise UserError(f"model.attention={name} needs {source} ({error}).") from error
    return _ADAPTERS[name](module, float(softcap or 0))


class FlashKernel:
    """A flash-attn package as a `kernel.Kernel`: all squares of a part in one call, nothing copied."""

    varlen = True
    halved = range(0)

    def __init__(self, forward: Forward, backward: Backward, *, unlike: bool = False) -> None:
        self._forward, self._backward, self.unlike = forward, backward, unlike

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, squares: tuple[int, ...], scaling: float
    ) -> tuple[Tensor, Tensor]:
        """See `kernel.Kernel`."""
        width = value.shape[3]
        states = [_token_rows(one) for one in (query, key, value)]
        output, lse = self._forward(*states, *_lengths(query, key, squares), scaling, bool(squares))
        return output[..., :width].transpose(0, 1)[None], lse[None]

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        squares: tuple[int, ...],
        scaling: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `kernel.Kernel`."""
        widths = (query.shape[3], key.shape[3], value.shape[3])
        states = [_token_rows(one) for one in (gradient, query, key, value, output)]
        gradients = [torch.empty_like(one, memory_format=torch.contiguous_format) for one in states[1:4]]
        # Its kernels read the log-sum-exp as a dense [h, total], whatever the strides say.
        dense = lse[0].contiguous()
        lengths = _lengths(query, key, squares)
        self._backward(*states, dense, *gradients, *lengths, scaling, bool(squares))
        grad_query, grad_key, grad_value = (
            one[..., :width].transpose(0, 1)[None] for one, width in zip(gradients, widths, strict=True)
        )
        return grad_query, grad_key, grad_value


def _token_rows(states: Tensor) -> Tensor:
    """`[1, h, n, D]` → `[n, h, D]`, as kernels read it (`aligned`)."""
    return aligned(states[0].transpose(0, 1))


def _lengths(query: Tensor, key: Tensor, squares: tuple[int, ...]) -> tuple[Tensor, Tensor, int, int]:
    """Cumulative lengths of the queries' and the keys' sequences, and the longest of each."""
    queries = squares or (query.shape[2],)
    keys = squares or (key.shape[2],)
    device = query.device
    return _cumulative(queries, device), _cumulative(keys, device), max(queries), max(keys)


@lru_cache(maxsize=256)  # every layer asks for the same ones
def _cumulative(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """`[len + 1]`, int32, from 0."""
    return to_device(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device)


def _flash2(module: Any, softcap: float) -> FlashKernel:
    """flash-attn 2.8: `flash_attn.flash_attn_interface`; `softcap` 0 is none."""

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        *tensors, scaling, causal = arguments
        output, lse, _, _ = module._flash_attn_varlen_forward(*tensors, 0.0, scaling, causal, softcap=softcap)
        return output, lse

    def backward(*arguments: Any) -> None:
        *tensors, scaling, causal = arguments
        window, alibi = (-1, -1), None
        deterministic = torch.are_deterministic_algorithms_enabled()
        module._flash_attn_varlen_backward(
            *tensors, 0.0, scaling, causal, *window, softcap, alibi, deterministic
        )

    return FlashKernel(forward, backward)


def _flash3(module: Any, softcap: float) -> FlashKernel:
    """FlashAttention 3: `flash_attn_interface`; `softcap` 0 is none."""

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        q, k, v, cu_q, cu_k, max_q, max_k, scaling, causal = arguments
        new = (None,) * 4  # k_new, v_new, qv, out
        used = (None,) * 3  # cu_seqlens_k_new, seqused_q, seqused_k
        paged = (None,) * 9  # page table, batch index, left padding, rotary (3), descaling (3)
        output, lse, *_ = module._flash_attn_forward(
            q, k, v, *new, cu_q, cu_k, *used, max_q, max_k, *paged, scaling, causal, softcap=softcap
        )
        return output, lse

    def backward(*arguments: Any) -> None:
        *states, dq, dk, dv, cu_q, cu_k, max_q, max_k, scaling, causal = arguments
        module._flash_attn_backward(
            *states, cu_q, cu_k, None, None, max_q, max_k, dq, dk, dv, scaling, causal,
            softcap=softcap, deterministic=torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip

    return FlashKernel(forward, backward)


def _flash4(module: Any, softcap: float) -> FlashKernel:
    """FlashAttention 4: `flash_attn.cute.interface`, compiled when a kind of call comes for the first time."""
    masked = {"softmax_scale", "causal", "softcap"}
    rows = {"cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"}
    _check_call(module, "_flash_attn_fwd", {"q", "k", "v", "return_lse", *rows, *masked})
    _check_call(
        module,
        "_flash_attn_bwd",
        {"q", "k", "v", "out", "dout", "lse", "dq", "dk", "dv", "deterministic", *rows, *masked},
    )

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        q, k, v, cu_q, cu_k, max_q, max_k, scaling, causal = arguments
        output, lse, *_ = module._flash_attn_fwd(
            q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=max_q, max_seqlen_k=max_k,
            softmax_scale=scaling, causal=causal, softcap=softcap, return_lse=True,
        )  # fmt: skip
        return output, lse

    def backward(*arguments: Any) -> None:
        gradient, q, k, v, out, lse, dq, dk, dv, cu_q, cu_k, max_q, max_k, scaling, causal = arguments
        module._flash_attn_bwd(
            q, k, v, out=out, dout=gradient, lse=lse, dq=dq, dk=dk, dv=dv, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k,
            max_seqlen_q=max_q, max_seqlen_k=max_k, softmax_scale=scaling, causal=causal, softcap=softcap,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip

    return FlashKernel(forward, backward, unlike=True)


def _check_call(module: Any, function: str, names: set[str]) -> None:
    """Refuses a version whose function does not take what it is called with: it is a beta, whose calls may change."""
    found = getattr(module, function, None)
    known: set[str] = set() if found is None else set(inspect.signature(found).parameters)
    if names - known:
        raise UserError(
            f"model.attention=flash4: this version of flash-attn-4 has no {function} with "
            f"{', '.join(sorted(names - known))}: install flash-attn-4==4.0.0b36, or set model.attention=auto."
        )


_ADAPTERS: dict[str, Callable[[Any, float], FlashKernel]] = {
    "flash2": _flash2,
    "flash3": _flash3,
    "flash4": _flash4,
}
