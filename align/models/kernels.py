"""`model.kernels=liger`: RMSNorm, gated MLP and rotary embedding of a loaded model by liger-kernel, one kernel each.

Modules of the one model are exchanged, no class or function of a library is touched. A new norm or MLP takes over the
old one's parameters and projections themselves, under their names, so that checkpoints, adapters and wrappers see no
difference; attention becomes a subclass of its class, whose forward is the class's own with another rotary embedding.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache, update_wrapper
from types import FunctionType
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.core.telling import tell
from align.models.settings import LIGER, ModelSettings
from align.models.text_part import text_config, text_decoder

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Norm:
    """How a family computes RMSNorm, in liger-kernel's words.

    Attributes:
        casting_mode: `llama` rounds x / rms to the states' type before it is multiplied by the weight, `gemma` after.
        offset: what is added to the weight: Gemma's are stored as their difference from 1.
    """

    casting_mode: str = "llama"
    offset: float = 0.0


@dataclass(frozen=True)
class Mlp:
    """Which of liger-kernel's modules computes a family's gated MLP.

    Attributes:
        module: its name in `liger_kernel.transformers`.
        key: of the configuration, which names the activation that the family computes.
        activations: names of the one that the module computes.
        projections: of the family's own module, which the new one calls.
    """

    module: str = "LigerSwiGLUMLP"
    key: str = "hidden_act"
    activations: tuple[str, ...] = ("silu", "swish")
    projections: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Fused:
    """What is exchanged in a family of models.

    Attributes:
        norm: every RMSNorm.
        mlp: every gated MLP; None leaves MLP and experts as they are.
        rotary: whether attention turns halves of its heads by `apply_rotary_pos_emb(query, key, cos, sin)`, as Llama's
            does; False leaves rotary embeddings as they are (pairs of neighbours, three axes of an image).
    """

    norm: Norm = Norm()
    mlp: Mlp | None = Mlp()
    rotary: bool = True


_ROUNDED_LAST = Norm("gemma")
_GEMMA = Fused(Norm("gemma", 1.0), Mlp("LigerGEGLUMLP", activations=("gelu_pytorch_tanh",)))
_GEMMA_2 = replace(_GEMMA, mlp=Mlp("LigerGEGLUMLP", "hidden_activation", ("gelu_pytorch_tanh",)))
_ONE_PROJECTION = Mlp("LigerPhi3SwiGLUMLP", projections=("gate_up_proj", "down_proj"))
_ROTARY = "apply_rotary_pos_emb"  # what attention of transformers calls

# `model_type` of the text part → what of it is exchanged. Each was held against the library's own modules.
FAMILIES: dict[str, Fused] = {
    **dict.fromkeys(("llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3", "exaone4"), Fused()),
    **dict.fromkeys(("qwen2_5_vl_text", "qwen3_vl_text"), Fused(rotary=False)),
    **dict.fromkeys(("olmo2", "olmo3"), Fused(_ROUNDED_LAST)),
    "gemma": _GEMMA,
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA_2),
    "phi3": Fused(mlp=_ONE_PROJECTION),
    **dict.fromkeys(("glm", "glm4"), Fused(mlp=_ONE_PROJECTION, rotary=False)),
    **dict.fromkeys(("mixtral", "qwen3_moe"), Fused(mlp=None)),
}


def kernels_on(settings: ModelSettings, device: str | torch.device | None) -> str:
    """`model.kernels` where the model computes: `none` on anything but a CUDA GPU, which is said in a line.

    Args:
        settings: group `model`.
        device: where the model computes; None is the process's GPU, if it has one.
    """
    if settings.kernels != LIGER:
        return settings.kernels
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.device(device).type
    if kind == "cuda":
        return LIGER
    _say(f"model.kernels={LIGER} is off: its kernels need a CUDA GPU, and this model computes on {kind}.")
    return "none"


def check_kernels(settings: ModelSettings, config: PreTrainedConfig, *, key: str = "model.path") -> None:
    """Refuses `model.kernels=liger` for a model that it is not proven for; reads no weights. `key` named the model.

    Raises:
        UserError: the package is missing; another family, activation, or code that comes with the model.
    """
    if settings.kernels != LIGER:
        return
    instead = f"set model.kernels=none for {key}={settings.path}"
    if importlib.util.find_spec("liger_kernel") is None:
        raise UserError(
            f"model.kernels={LIGER} needs the package liger-kernel: install it with "
            "`pip install 'long-preference[liger]'`, or set model.kernels=none."
        )
    if settings.trust_remote_code and getattr(config, "auto_map", None):
        raise UserError(
            f"model.kernels={LIGER} knows transformers' own classes, and not a model's code: {instead}."
        )
    text = text_config(config)
    fused = FAMILIES.get(text.model_type)
    if fused is None:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(
            f"model.kernels={LIGER} is proven for {known}, and not for {text.model_type}: {instead}."
        )
    if fused.mlp is not None and getattr(text, fused.mlp.key) not in fused.mlp.activations:
        raise UserError(
            f"model.kernels={LIGER} computes {' or '.join(fused.mlp.activations)} in {text.model_type}, and not "
            f"{getattr(text, fused.mlp.key)}: {instead}."
        )


def fuse(model: PreTrainedModel) -> dict[str, int]:
    """Exchanges the text decoder's RMSNorms, gated MLPs and rotary embeddings for liger-kernel's, in place.

    A Llama of 16 layers gets 33 `LigerRMSNorm`, 16 `LigerSwiGLUMLP` and 16 `LigerRopeFunction`, and keeps every name in
    its state dict.

    Args:
        model: a causal language model of one of `FAMILIES` (`check_kernels` refuses others), fused once.

    Returns:
        How many modules compute by each of liger-kernel's names.
    """
    fused = FAMILIES[text_config(model.config).model_type]
    counts: Counter[str] = Counter()
    for parent in list(text_decoder(model).modules()):
        kind: Any = type(parent)
        if fused.rotary and _calls_rotary(kind):
            parent.__class__ = _with_fused_rotary(kind)
            counts["LigerRopeFunction"] += 1
        for name, module in list(parent.named_children()):
            new = _exchanged(module, fused)
            if new is not None:
                setattr(parent, name, new)
                counts[type(new).__name__] += 1
    return dict(counts)


def say_fused(model: PreTrainedModel, counts: dict[str, int]) -> None:
    """Says once a process which kernels a model runs by, as `fuse` has counted them."""
    listed = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    _say(f"model.kernels={LIGER}: {type(model).__name__} computes by {listed}.")


def _exchanged(module: nn.Module, fused: Fused) -> nn.Module | None:
    """Liger-kernel's module in the place of one of transformers'; None for what stays."""
    kind = type(module)
    if not kind.__module__.startswith("transformers.models."):
        return None
    if kind.__name__.endswith("RMSNorm"):
        return _fused_norm(module, fused.norm)
    if fused.mlp is not None and kind.__name__.endswith("MLP"):
        return _fused_mlp(module, fused.mlp)
    return None


def _fused_norm(module: Any, norm: Norm) -> nn.Module:
    import torch
    from liger_kernel.transformers import LigerRMSNorm

    with torch.device("meta"):
        # `in_place` would write a gradient over one that a residual connection still reads (Gemma-2, OLMo-2).
        new: Any = LigerRMSNorm(
            hidden_size=module.weight.numel(),
            eps=getattr(module, "variance_epsilon", None) or module.eps,
            offset=norm.offset,
            casting_mode=norm.casting_mode,
            in_place=False,
        )
    new.weight = module.weight
    return new.train(module.training)  # type: ignore[no-any-return]


def _fused_mlp(module: Any, mlp: Mlp) -> nn.Module:
    import torch
    from liger_kernel import transformers as liger

    with torch.device("meta"):
        new: Any = getattr(liger, mlp.module)(config=module.config)
    for name in mlp.projections:
        setattr(new, name, getattr(module, name))
    return new.train(module.training)  # type: ignore[no-any-return]


def _calls_rotary(kind: Any) -> bool:
    code = getattr(kind.forward, "__code__", None)
    return code is not None and _ROTARY in code.co_names


@cache
def _with_fused_rotary(kind: Any) -> Any:
    """A subclass of an attention's class: its forward is the class's own, but for `apply_rotary_pos_emb`."""
    own = kind.forward
    names = {**own.__globals__, _ROTARY: _fused_rotary}
    forward = FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    forward.__kwdefaults__ = own.__kwdefaults__
    return type(kind.__name__, (kind,), {"forward": update_wrapper(forward, own)})


def _fused_rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """`[b, H, T, D]` queries and keys, turned where they lie by `[·, T, ≤ D]` cosines and sines.

    The function itself, and not `liger_rotary_pos_emb`: where CuTe's compiler is installed, which FlashAttention 4
    needs, that takes another kernel with a gradient than without, so another in the policy than in its reference.
    """
    from liger_kernel.ops import LigerRopeFunction

    return LigerRopeFunction.apply(query, key, cos, sin)  # type: ignore[no-any-return]


@cache
def _say(sentence: str) -> None:
    """Once a process, although policy, reference and evaluation load a model each."""
    tell(sentence)
