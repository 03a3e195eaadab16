"""What the layers of a model are: which attend and how wide, which are like Llama's, and what a token goes through."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers import PreTrainedConfig

from align.adapters.adapter import Adapter
from align.adapters.lora import Lora
from align.core.errors import UserError, first_line
from align.longseq.mixers import attends, mixer_rule
from align.longseq.support import keeps_state
from align.models.text_part import of_layers, text_config
from align.patterns.by_head import ByHead
from align.patterns.layers import attention_patterns
from align.patterns.pattern import FULL, Pattern
from align.planning.counting import Heads, Kind, LayerCounter, kind_of

# How configurations call the number of experts, and how many of them a token goes through.
_EXPERTS = re.compile(r"(n_routed|num_local|num|moe_num|n)_experts")
_TAKEN = re.compile(r"(num|n)_experts?_per_tok(en)?|num_selected_experts|(moe_)?top_?k(_experts)?|moe_k")
# Modules of a layer like Llama's; its formulas stand in activations.py.
_LLAMA = {
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "qkv_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "gate_up_proj",
}
_NORMS = 2
# What PEFT's LoRA puts behind a layer's name.
_PEFT = re.compile(r"\.(base_layer|lora_\w+\..*)$")


class UnknownModelError(UserError):
    """A kind of model that can neither be counted nor described by formulas."""


@dataclass(frozen=True)
class Attention:
    """Of `Architecture`: heads and widths of the widest layer, and what each layer is."""

    heads: int
    kv_heads: int
    head_dim: int
    patterns: tuple[Pattern | ByHead | None, ...]
    query_widths: tuple[int, ...]
    kinds: tuple[Kind, ...]
    like_llama: bool
    counter: LayerCounter | None


def attention_of(config: PreTrainedConfig, layers: Sequence[nn.Module], adapter: Adapter | None) -> Attention:
    """What the layers' attention is: by the configuration of a Llama-like model, else as a layer of each kind shows.

    Args:
        config: the model's.
        layers: on the meta device, with adapters.
        adapter: what trains; None: all parameters.

    Raises:
        UnknownModelError: layers that keep a state in a class that cannot be run without values, or no attention at
            all.
    """
    kinds = tuple(map(kind_of, layers))
    patterns = attention_patterns(text_config(config))
    if by_formulas(adapter) and _like_llama(layers):
        return replace(_by_configuration(config, patterns, kinds), like_llama=True)
    # Adapters of experts fold into their weights, which PEFT does not do on the meta device: they are added on top.
    counter = LayerCounter(config, None if any(map(adapted_experts, layers)) else adapter)
    try:
        seen = counter.heads
        kinds = tuple(_nearest(kind, seen) for kind in kinds)
        found = [seen[kind] for kind in kinds]
        counter.layers(2, "full")
    except Exception as error:  # of a class that needs values, or whose attention is its own
        if keeps_state(config):
            raise UnknownModelError(
                f"{config.model_type} models cannot be counted on tensors without values ({first_line(error)})."
            ) from error
        if len(patterns) == len(layers):  # else a layer attends more than once
            own = [any(attends(type(module)) for module in layer.modules()) for layer in layers]
            patterns = _where_attending(own, patterns)
        return _by_configuration(config, patterns, kinds)
    attending = [one for one in found if one is not None]
    if not attending and not any(map(runs_along_rows, layers)):
        return _by_configuration(config, patterns, kinds)
    widest = max(attending, key=lambda one: one.heads * one.width, default=Heads(1, 1, 1))
    return Attention(
        heads=widest.heads,
        kv_heads=widest.kv_heads,
        head_dim=widest.width,
        patterns=_where_attending([one is not None for one in found], patterns),
        query_widths=tuple(0 if one is None else one.heads * one.width for one in found),
        kinds=kinds,
        like_llama=False,
        counter=counter,
    )


def _nearest(kind: Kind, seen: Iterable[Kind]) -> Kind:
    """The kind itself, or of those that were seen the one of its class with the most weights in common.

    Zamba-2's shared layers have adapters of their own in each place.
    """
    return min(seen, key=lambda other: (other[0] != kind[0], len(set(other[1]) ^ set(kind[1]))))


def _where_attending(
    attending: list[bool], patterns: tuple[Pattern | ByHead | None, ...]
) -> tuple[Pattern | ByHead | None, ...]:
    """The pattern of each layer that attends, full where the configuration has none for it; None of the others."""
    named = patterns if len(patterns) == len(attending) else (None,) * len(attending)
    return tuple((pattern or FULL) if one else None for one, pattern in zip(attending, named, strict=True))


def runs_along_rows(layer: nn.Module) -> bool:
    """Whether a mixer of the layer keeps a state, so that a row stays on one process."""
    return any(mixer_rule(type(module)) is not None for module in layer.modules())


def active_parameters(layer: nn.Module, config: PreTrainedConfig) -> float:
    """Parameters of a layer that a token goes through: k of each E experts, and all others.

    Args:
        layer: of the model.
        config: the text part's, which says k.
    """
    experts = _expert_share(layer, config)
    return sum(p.numel() * experts.get(id(p), 1.0) for p in layer.parameters())


def expert_parameters(layer: nn.Module, config: PreTrainedConfig) -> int:
    """Parameters of all experts of a layer, which wrappers that shard weights gather at once."""
    experts = _expert_share(layer, config)
    return sum(p.numel() for p in layer.parameters() if id(p) in experts)


def by_formulas(adapter: Adapter | None) -> bool:
    """Whether the formulas of activations.py know what an adapter keeps: LoRA's, and where all parameters train."""
    return adapter is None or (isinstance(adapter, Lora) and not adapter.options.get("use_dora"))


def adapted_experts(layer: nn.Module) -> int:
    """Numbers of a layer's experts that have adapters: PEFT makes the sum of both anew in each forward."""
    wrapped = (module for module in layer.modules() if isinstance(module, ParamWrapper))
    return sum(module.get_param().numel() for module in wrapped)


def mlp_width(active: float, hidden: int, attention: Attention) -> int:
    """I of the Llama-like MLP that has as many parameters as a token goes through in a layer, beside its attention."""
    width = attention.heads + attention.kv_heads
    return max(1, round((active - 2 * hidden * width * attention.head_dim) / (3 * hidden)))


def _expert_share(layer: nn.Module, config: PreTrainedConfig) -> dict[int, float]:
    """Of each weight that holds a layer's experts, by id, what share of it a token goes through: 2 of 8 are 0.25."""
    counts = {n for n in _numbers(config, _EXPERTS) if n > 1}
    taken = [n for n in _numbers(config, _TAKEN) if n > 0]
    if not counts or not taken:
        return {}
    shares: dict[int, float] = {}
    for module in layer.modules():
        convolution = isinstance(module, nn.modules.conv._ConvNd)
        if isinstance(module, nn.ModuleList) and len(module) in counts:
            shares |= {id(p): min(1.0, taken[0] / len(module)) for p in module.parameters()}
        for p in () if convolution else module.parameters(recurse=False):
            if p.ndim == 3 and p.shape[0] in counts:
                shares[id(p)] = min(1.0, taken[0] / p.shape[0])
        if isinstance(module, ParamWrapper) and module.get_param().shape[0] in counts:
            adapters = [p for name, p in module.named_parameters() if name.startswith("lora_")]
            shares |= {id(p): min(1.0, taken[0] / module.get_param().shape[0]) for p in adapters}
    return shares


def _numbers(config: PreTrainedConfig, names: re.Pattern[str]) -> list[int]:
    """Values of a configuration's keys with such names."""
    return [
        value for name, value in config.to_dict().items() if names.fullmatch(name) and isinstance(value, int)
    ]


def _like_llama(layers: Sequence[nn.Module]) -> bool:
    """Whether all layers are alike, made of attention's four projections, an MLP with a gate, and two norms."""
    if len({kind_of(layer) for layer in layers}) > 1:
        return False
    layer = layers[0]
    owners = [(name, module) for name, module in layer.named_modules() if [*module.parameters(recurse=False)]]
    linear = {name for name, module in owners if isinstance(module, nn.Linear)}
    others = [name for name, _ in owners if name not in linear]
    named = {_PEFT.sub("", name).rsplit(".", 1)[-1] for name in linear}
    norms = sum("norm" in name for name, _ in layer.named_children())
    return named <= _LLAMA and all("norm" in name for name in others) and norms == _NORMS


def _by_configuration(
    config: PreTrainedConfig, patterns: tuple[Pattern | ByHead | None, ...], kinds: tuple[Kind, ...]
) -> Attention:
    """Heads and widths of the widest layer as the configuration names them; what it leaves out the library has."""

    def widest(name: str) -> int | None:
        return max((value for value in of_layers(config, name) if isinstance(value, int)), default=None)

    heads = widest("num_attention_heads")
    if heads is None:
        raise _no_attention(config)
    width = widest("head_dim") or text_config(config).hidden_size // heads
    return Attention(
        heads=heads,
        kv_heads=widest("num_key_value_heads") or heads,
        head_dim=width,
        patterns=patterns,
        query_widths=tuple(0 if pattern is None else heads * width for pattern in patterns),
        kinds=kinds,
        like_llama=False,
        counter=None,
    )


def _no_attention(config: PreTrainedConfig) -> UnknownModelError:
    return UnknownModelError(
        f"{config.model_type} models are not made of attention and MLPs: align plan cannot count them."
    )
