"""A model's sizes, counted on the meta device: exact parameter counts, and no weights are read or made."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_utils import set_zero3_state

from align.adapters.adapter import Adapter, add_adapter
from align.adapters.layers import put_on, replaced
from align.core.errors import UserError, first_line
from align.distributed.names import WRAPPERS
from align.longseq.last_norm import last_norm
from align.models.loading import library_class, load_config, window_of
from align.models.paths import resolve_path
from align.models.query_scale import override_query_scale
from align.models.rope import override_rope
from align.models.settings import ModelSettings
from align.models.soft_prompt import NAME
from align.models.structure import decoder_layers, find_causal_lm
from align.models.text_part import of_layers, text_config
from align.patterns.by_head import ByHead
from align.patterns.layers import keep_patterns
from align.patterns.pattern import Pattern
from align.planning.counting import Kind, LayerCounter
from align.planning.known import KNOWN
from align.planning.layers import (
    Attention,
    active_parameters,
    adapted_experts,
    attention_of,
    expert_parameters,
    mlp_width,
    runs_along_rows,
)
from align.planning.layers import UnknownModelError as UnknownModelError

_LATENT = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
_MLP = {"gate_proj", "up_proj", "down_proj", "gate_up_proj"}


@dataclass(frozen=True)
class Architecture:
    """Sizes that memory and time follow from; counts are of single numbers, not bytes.

    Attributes:
        layers: L, decoder layers.
        hidden: H, width of the residual stream.
        intermediate: I, width of the MLP.
        heads: query heads.
        kv_heads: key-value heads (grouped-query attention).
        head_dim: D, width of a head.
        vocabulary: V.
        tied: whether the output head is the token embedding; it is then counted once.
        parameters: all, adapters included.
        trainable: of them those that train.
        layer_parameters: of the largest decoder layer, adapters and all its experts included.
        layer_trainable: of them those that train.
        all_layers: parameters of all decoder layers.
        active: of them those that a token goes through: of 8 experts the 2 that its router takes.
        largest_weight: of one tensor of a layer that trains; all experts' are one.
        with_experts: of each layer, whether it has experts.
        layer_experts: parameters of a layer's experts, of the layer with the most.
        adapted_experts: numbers of the experts of a layer that have adapters, of the layer with the most.
        projections: query, key and value projections of all layers.
        head_parameters: of the output head (the tied embedding too).
        linear_parameters: of all linear layers but the head: what `model.quantization` packs.
        lora: whether an adapter trains on frozen weights.
        lora_mlp: whether the adapter reaches into the MLP.
        adapted_attention: widths of the inputs of a layer's adapted projections, of the largest layer.
        adapted_mlp: of those of its MLP.
        embedding_trains: whether the token embedding does.
        head_trains: whether the output head does.
        norm_of_scored: whether the last norm reads the scored tokens alone.
        patterns: of each layer's attention, by which its work is counted; None of a layer without attention.
        query_widths: heads · D of each layer's attention; 0 of a layer without.
        one_process: whether layers keep a state, so that rows are not shared among processes.
        wrappers: in which the adapter trains; all without one.
        collected: of weights whose gradients an adapter collects beside those of what trains.
        kinds: of each layer, for `counter`.
        like_llama: whether the formulas of activations.py are those of its layers.
        counter: what other layers keep and need; None where they are estimated by these formulas.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    parameters: int
    trainable: int
    layer_parameters: int
    layer_trainable: int
    all_layers: int
    active: float
    largest_weight: int
    with_experts: tuple[bool, ...]
    layer_experts: int
    adapted_experts: int
    projections: int
    head_parameters: int
    linear_parameters: int
    lora: bool
    lora_mlp: bool
    adapted_attention: int
    adapted_mlp: int
    embedding_trains: bool
    head_trains: bool
    norm_of_scored: bool
    patterns: tuple[Pattern | ByHead | None, ...]
    query_widths: tuple[int, ...]
    one_process: bool
    wrappers: tuple[str, ...]
    collected: int
    like_llama: bool
    kinds: tuple[Kind, ...] = field(repr=False)
    counter: LayerCounter | None = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Every size; of the patterns how many layers have each: `{"Window(size=512)": 5, "Full()": 1}`."""
        sizes = {name: value for name, value in vars(self).items() if name not in ("kinds", "counter")}
        return sizes | {"patterns": dict(Counter(str(pattern) for pattern in self.patterns))}

    @property
    def attending(self) -> float:
        """How many layers attend, each as much as its width is of the widest: 32 of 32, or 12 of 48."""
        return sum(self.query_widths) / self.query_width

    @property
    def query_width(self) -> int:
        """heads · D."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """kv_heads · D, of keys alone."""
        return self.kv_heads * self.head_dim


def read_config(settings: ModelSettings) -> tuple[PreTrainedConfig, str]:
    """The model's configuration and where it is from; the recipes' models need no Hub.

    Args:
        settings: group `model`.

    Raises:
        UserError: no folder, and neither the Hub nor the table of known models has it.
    """
    facts = KNOWN.get(settings.path)
    if facts is None:
        return load_config(settings), resolve_path(settings.path)
    config = AutoConfig.for_model(**facts)
    window = window_of(config)
    override_rope(config, settings.rope)
    keep_patterns(config, settings.layer_patterns)
    override_query_scale(config, settings.query_scale, window=window)
    return config, "the published sizes (align/planning/known.py)"


def measure(config: PreTrainedConfig, settings: ModelSettings) -> Architecture:
    """Builds the model and its adapters on the meta device, where tensors have sizes and no values, and counts.

    Args:
        config: the model's.
        settings: its adapter.

    Raises:
        UnknownModelError: layers that keep a state and cannot be counted, a model with code of its own, or a
            configuration that no model can be made of.
    """
    # The class itself, and a composite's parts as if within such a call: under ZeRO-3 `from_config` would scatter the
    # weights.
    model_class: Any = library_class(config)
    adapter = settings.adapter
    with torch.device("meta"), set_zero3_state():
        model = _adapted_model(_made(model_class, config), adapter)
    lm = find_causal_lm(model)
    head, embedding = lm.get_output_embeddings(), lm.get_input_embeddings()
    layers = list(decoder_layers(lm))
    largest = max(layers, key=_count)
    text = text_config(config)
    attention = attention_of(config, layers, adapter)
    active = [active_parameters(layer, text) - replaced(layer) for layer in layers]
    return Architecture(
        layers=len(layers),
        hidden=text.hidden_size,
        intermediate=_intermediate(text, attention, max(active)),
        vocabulary=text.vocab_size,
        **vars(attention),
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        parameters=_count(model),
        trainable=_count(model, trainable=True),
        layer_parameters=_count(largest),
        layer_trainable=_count(largest, trainable=True),
        all_layers=sum(map(_count, layers)),
        active=sum(active),
        largest_weight=max((p.numel() for p in largest.parameters() if p.requires_grad), default=0),
        with_experts=tuple(expert_parameters(layer, text) > 0 for layer in layers),
        layer_experts=max(expert_parameters(layer, text) for layer in layers),
        adapted_experts=max(map(adapted_experts, layers)),
        projections=sum(map(_projections, layers)),
        head_parameters=_count(head),
        linear_parameters=_linear_parameters(lm, head),
        lora=model is not lm,  # all parameters train behind a frozen soft prompt
        lora_mlp=_adapted(largest, mlp=True) > 0,
        adapted_attention=_adapted(largest, mlp=False),
        adapted_mlp=_adapted(largest, mlp=True),
        embedding_trains=any(p.requires_grad for name, p in embedding.named_parameters() if NAME not in name),
        head_trains=_count(head, trainable=True) > 0,
        norm_of_scored=last_norm(lm) is not None,
        one_process=any(map(runs_along_rows, layers)),
        **_needs_of(adapter, model),
    )


def _needs_of(adapter: Adapter | None, model: nn.Module) -> dict[str, Any]:
    """Wrappers that it trains in, and weights whose gradients it collects."""
    wrappers = [name for name in WRAPPERS if adapter is None or adapter.takes_wrapper(name)]
    collects = adapter is not None and adapter.whole_gradients
    return {"wrappers": tuple(wrappers), "collected": sum(map(put_on, model.modules())) if collects else 0}


def _made(model_class: Any, config: PreTrainedConfig) -> Any:
    """A model of the class; raises UnknownModelError where its own code cannot make one of this configuration."""
    if model_class is None:
        raise UnknownModelError(
            f"{config.model_type} models are not the library's own: align plan cannot count them."
        )
    if not hasattr(text_config(config), "num_hidden_layers"):
        raise UnknownModelError(
            f"{config.model_type} models do not say how many layers they have, which align plan counts by."
        )
    try:
        return model_class(copy.deepcopy(config))
    except Exception as error:  # whatever the class says of values that do not fit or are not there
        raise UnknownModelError(
            f"No {model_class.__name__} can be made of this configuration ({first_line(error)}): look at the "
            "config.json of model.path."
        ) from error


def _adapted_model(model: Any, adapter: Adapter | None) -> Any:
    """The model with its adapter; raises UnknownModelError where that looks at weights, which are not read here."""
    if adapter is None:
        return add_adapter(model, None)
    try:
        return adapter.without_values().add(model)
    except UserError:
        raise
    except Exception as error:  # whatever a tuner's code says to tensors without values
        raise UnknownModelError(
            f"adapter={adapter.kind} looks at the weights that it is put on, which align plan does not read: it "
            "cannot be counted; plan with adapter=lora of about as many parameters."
        ) from error


def _intermediate(config: PreTrainedConfig, attention: Attention, active: float) -> int:
    """I, as the configuration names it of the widest layer; with experts that are not counted, as wide as theirs."""
    named = [value for value in of_layers(config, "intermediate_size") if isinstance(value, int)]
    if named and (attention.like_llama or attention.counter is not None):
        return max(named)
    return mlp_width(active, config.hidden_size, attention)


def _count(module: nn.Module, *, trainable: bool = False) -> int:
    """Distinct parameters, shared ones once: a linear layer from 4 to 3 with its bias has 15."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _linear_parameters(model: nn.Module, head: nn.Module) -> int:
    """Weights of all linear layers but the head."""
    linear = (module for module in model.modules() if isinstance(module, nn.Linear) and module is not head)
    return sum(module.weight.numel() for module in linear)


def _projections(layer: nn.Module) -> int:
    """Parameters that make queries, keys and values of the layer's input."""
    names = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", *_LATENT)
    return sum(_count(m) for name, m in layer.named_modules() if name.rsplit(".", 1)[-1] in names)


def _adapted(layer: nn.Module, *, mlp: bool) -> int:
    """Input widths of a layer's linear modules with LoRA, of its MLP or of the rest: q, k, v and o of 4,096: 16,384."""
    adapted: dict[str, int | None] = {
        name.rsplit(".", 1)[-1]: module.in_features
        for name, module in layer.named_modules()
        if isinstance(module, LoraLinear)
    }
    return sum(int(width or 0) for name, width in adapted.items() if (name in _MLP) == mlp)
