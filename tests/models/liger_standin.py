"""A stand-in for `liger_kernel`: the signatures and semantics of liger-kernel 0.8.5, in PyTorch.

What its kernels write over is written over here too: RMSNorm's gradient with `in_place`, the gate and up states of a
gated MLP in the backward pass, queries and keys in both passes of the rotary embedding. All of it goes through
`data`, so that autograd does not notice, as it does not notice a kernel.
"""

from __future__ import annotations

import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

CALLS: Counter[str] = Counter()  # how often each of the names below was called


def normalise(x: Tensor, weight: Tensor, eps: float, offset: float, casting_mode: str) -> Tensor:
    """As the docstring of `LigerRMSNormFunction` says: rounded before the weight (`llama`), or after it (`gemma`)."""
    states = x.float()
    normed = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + eps)
    if casting_mode == "llama":
        return (normed.to(x.dtype) * (offset + weight)).to(x.dtype)
    assert casting_mode == "gemma"
    return (normed * (offset + weight.float())).to(x.dtype)


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps, offset, casting_mode, in_place) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.form = (eps, offset, casting_mode)
        ctx.in_place = in_place
        return normalise(x, weight, eps, offset, casting_mode)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight = (saved.detach().requires_grad_() for saved in ctx.saved_tensors)
        with torch.enable_grad():
            y = normalise(x, weight, *ctx.form)
        dx, dw = torch.autograd.grad(y, (x, weight), gradient)
        if ctx.in_place:
            dx = gradient.data.copy_(dx)
        return dx, dw, None, None, None, None


class LigerRMSNorm(nn.Module):
    def __init__(
        self,
        hidden_size,
        eps=1e-6,
        offset=0.0,
        casting_mode="llama",
        init_fn="ones",
        in_place=True,
        row_mode=None,
        elementwise_affine=True,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.form = (eps, offset, casting_mode, in_place)

    def forward(self, hidden_states):
        CALLS["LigerRMSNorm"] += 1
        return _RmsNorm.apply(hidden_states.contiguous(), self.weight, *self.form)


class _GatedProduct(Function):
    """`activation(gate) · up`, whose backward pass leaves the gradients where gate and up were saved."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate.float()).to(up.dtype) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        saved = ctx.saved_tensors
        gate, up = (states.detach().clone().requires_grad_() for states in saved)
        with torch.enable_grad():
            product = ctx.activation(gate.float()).to(up.dtype) * up
        found = torch.autograd.grad(product, (gate, up), gradient)
        return *(states.data.copy_(new) for states, new in zip(saved, found, strict=True)), None


class LigerSwiGLUMLP(nn.Module):
    def __init__(self, config, intermediate_size=None):
        super().__init__()
        width = intermediate_size if intermediate_size is not None else config.intermediate_size
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=False)
        if config.hidden_act not in ["silu", "swish"]:
            raise ValueError(f"Activation function {config.hidden_act} not supported.")

    def forward(self, x):
        CALLS["LigerSwiGLUMLP"] += 1
        return self.down_proj(_GatedProduct.apply(self.gate_proj(x), self.up_proj(x), F.silu))


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class LigerGEGLUMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        CALLS["LigerGEGLUMLP"] += 1
        return self.down_proj(_GatedProduct.apply(self.gate_proj(x), self.up_proj(x), _gelu))


class LigerPhi3SwiGLUMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        if config.hidden_act not in ["silu", "swish"]:
            raise ValueError(f"Activation function {config.hidden_act} not supported.")

    def forward(self, x):
        CALLS["LigerPhi3SwiGLUMLP"] += 1
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(_GatedProduct.apply(gate, up, F.silu))


def _turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`[b, heads, T, D]` turned in place in their first `cos.shape[-1]` places, by halves; returns the same storage."""
    flat = states.transpose(1, 2).contiguous().data
    width = cos.shape[-1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = flat[..., :width].to(sin.dtype)
    left, right = turned.chunk(2, dim=-1)
    flat[..., :width] = turned * cos + torch.cat((-right, left), -1) * sin
    return flat.transpose(1, 2)


class LigerRopeFunction(Function):
    @staticmethod
    def forward(ctx: Any, q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None) -> Any:
        CALLS["LigerRopeFunction"] += 1
        assert q.dim() == k.dim() == 4 and cos.dim() == sin.dim() == 3 and cos.shape[1] == q.shape[2]
        assert position_ids is None and unsqueeze_dim == 1 and rotary_dim is None
        ctx.save_for_backward(cos, sin)
        return _turn(q, cos, sin), _turn(k, cos, sin)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> Any:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turn(dq, cos, -sin), _turn(dk, cos, -sin), None, None


def install(monkeypatch: Any) -> None:
    """Puts the stand-in where `import liger_kernel` and `find_spec` look, until the test ends."""
    package, *parts = (
        ModuleType(name) for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.ops")
    )
    package.__spec__ = ModuleSpec("liger_kernel", None)
    modules = (LigerRMSNorm, LigerSwiGLUMLP, LigerGEGLUMLP, LigerPhi3SwiGLUMLP)
    for part, offered in zip(parts, (modules, (LigerRopeFunction,)), strict=True):
        for each in offered:
            setattr(part, each.__name__, each)
        setattr(package, part.__name__.rpartition(".")[2], part)
    for module in (package, *parts):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    CALLS.clear()
