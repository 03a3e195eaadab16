"""FlashAttention 2 and 3 by their packages, imported when first used.

Both take sequences of unlike length one after the other, `[total, heads, D]`, with cumulative lengths from 0,
int32, on the device. Their differentiable functions (`flash_attn_varlen_func`) hide the log-sum-exp's place in
the backward, so the pair below them is called: FlashAttention 2.8's `_flash_attn_varlen_forward`, `…_backward`,
and FlashAttention 3's `_flash_attn_forward`, `_flash_attn_backward`, by position, which its versions share.
With `causal=True` the mask is aligned to the bottom right; the squares here have as many queries as keys.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from align.core.errors import UserError
from align.longseq.settings import FLASH_MODULES, SOFTCAP

# `(q, k, v, cu_q, cu_k, max_q, max_k, scaling, causal) -> (output, log-sum-exp [h, total])`
Forward = Callable[..., tuple[Tensor, Tensor]]
# `(gradient, q, k, v, output, lse, dq, dk, dv, cu_q, cu_k, max_q, max_k, scaling, causal)`, into dq, dk, dv
Backward = Callable[..., None]


def check_flash(
    name: str,
    *,
    dtype: torch.dtype,
    weights: torch.dtype | None = None,
    width: int | None = None,
    capability: tuple[int, int] | None = None,
) -> None:
    """Refuses `flash2` and `flash3` where they cannot run, before any weights are read.

    Args:
        name: `model.attention`.
        dtype: in which the model computes.
        weights: in which it is stored; None is `dtype`.
        width: of a head, the widest of the model's; None is not looked at.
        capability: of the GPU; None asks it.

    Raises:
        UserError: the package, the GPU or the precision is missing, or a head is too wide.
    """
    module, source = FLASH_MODULES[name]
    if importlib.util.find_spec(module.split(".")[0]) is None:
        raise UserError(f"model.attention={name} needs {source}, or set model.attention=sdpa.")
    if not torch.cuda.is_available():
        raise UserError(f"model.attention={name} needs a CUDA GPU: set model.attention=sdpa.")
    if dtype not in (torch.bfloat16, torch.float16):
        raise UserError(
            f"model.attention={name} computes in bfloat16 or float16 only: set model.dtype=bfloat16 or "
            "trainer.bf16=true, or model.attention=sdpa."
        )
    problem = flash_problem(
        name, dtype, weights or dtype, width, capability or torch.cuda.get_device_capability()
    )
    if problem is not None:
        raise UserError(f"model.attention={name} {problem}")


# The oldest GPU whose instructions each has: Ampere, Hopper.
_OLDEST = {"flash2": (8, 0), "flash3": (9, 0)}
WIDEST = 256


def flash_problem(
    name: str, dtype: torch.dtype, weights: torch.dtype, width: int | None, capability: tuple[int, int]
) -> str | None:
    """Why a kernel cannot run on such a GPU for such a model, in words; None where it can. See `check_flash`."""
    if capability < _OLDEST[name]:
        needed, found = (".".join(map(str, each)) for each in (_OLDEST[name], capability))
        other = "flash2 or sdpa" if name == "flash3" and capability >= _OLDEST["flash2"] else "sdpa"
        return f"needs a GPU of compute capability {needed}, and this one has {found}: set model.attention={other}."
    if width is not None and width > WIDEST:
        return f"takes heads up to {WIDEST} wide, and this model's have {width}: set model.attention=sdpa."
    if dtype == torch.float16 and weights == torch.bfloat16:
        return (
            "gets queries and values of two types from bfloat16 weights under trainer.fp16: set trainer.bf16=true "
            "in its place, or model.dtype=float32."
        )
    return None


def load_flash(name: str, *, module: Any = None) -> FlashKernel:
    """The kernel behind `model.attention=flash2` or `flash3`.

    Args:
        name: a key of `FLASH_MODULES`, or what `with_softcap` makes of it.
        module: stands in for the package's module; None imports it.

    Raises:
        UserError: the package cannot be imported.
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
    """A flash-attn package as a `kernels.Kernel`: all squares of a part in one call, nothing copied."""

    varlen = True
    halved = range(0)

    def __init__(self, forward: Forward, backward: Backward) -> None:
        self._forward, self._backward = forward, backward

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, squares: tuple[int, ...], scaling: float
    ) -> tuple[Tensor, Tensor]:
        """See `kernels.Kernel`."""
        width = query.shape[3]
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
        """See `kernels.Kernel`."""
        width = query.shape[3]
        states = [_token_rows(one) for one in (gradient, query, key, value, output)]
        gradients = [torch.empty_like(one, memory_format=torch.contiguous_format) for one in states[1:4]]
        # Its kernels read the log-sum-exp as a dense [h, total], whatever the strides say.
        dense = lse[0].contiguous()
        lengths = _lengths(query, key, squares)
        self._backward(*states, dense, *gradients, *lengths, scaling, bool(squares))
        grad_query, grad_key, grad_value = (one[..., :width].transpose(0, 1)[None] for one in gradients)
        return grad_query, grad_key, grad_value


def _token_rows(states: Tensor) -> Tensor:
    """`[1, h, n, D]` → `[n, h, D]`, D padded with zeros to a multiple of 8 and dense."""
    rows = pad(states, (0, -states.shape[3] % 8)) if states.shape[3] % 8 else states
    rows = rows[0].transpose(0, 1)
    return rows if rows.stride(2) == 1 else rows.contiguous()


def _lengths(query: Tensor, key: Tensor, squares: tuple[int, ...]) -> tuple[Tensor, Tensor, int, int]:
    """Cumulative lengths of the queries' and the keys' sequences, and the longest of each."""
    queries = squares or (query.shape[2],)
    keys = squares or (key.shape[2],)
    device = query.device
    return _cumulative(queries, device), _cumulative(keys, device), max(queries), max(keys)


@lru_cache(maxsize=256)  # every layer asks for the same ones, and a copy to the GPU would wait for it
def _cumulative(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """`[len + 1]`, int32, from 0."""
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


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


_ADAPTERS: dict[str, Callable[[Any, float], FlashKernel]] = {"flash2": _flash2, "flash3": _flash3}
