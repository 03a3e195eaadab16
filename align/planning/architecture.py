"""A model's sizes, counted on the meta device: exact parameter counts, and no weights are read or made."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_utils import set_zero3_state

from align.core.errors import UserError
from align.longseq.layer_pattern import attention_patterns
from align.longseq.patterns import Pattern
from align.longseq.support import keeps_state
from align.models.loading import library_class, load_config
from align.models.lora import add_lora
from align.models.paths import resolve_path
from align.models.rope import override_rope
from align.models.settings import ModelSettings
from align.models.structure import decoder_layers, experts, find_causal_lm
from align.models.text_part import of_layers, text_config
from align.planning.known import KNOWN

_MLP = {"gate_proj", "up_proj", "down_proj", "gate_up_proj"}


class UnknownModelError(UserError):
    """A kind of model that the formulas do not describe."""


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
        layer_parameters: of the largest decoder layer, adapters included.
        layer_trainable: of them those that train.
        projections: query, key and value projections of one layer.
        head_parameters: of the output head (the tied embedding too).
        linear_parameters: of all linear layers but the head: what `model.quantization` packs.
        lora: whether an adapter trains on frozen weights.
        lora_mlp: whether the adapter reaches into the MLP.
        embedding_trains: whether the token embedding does.
        head_trains: whether the output head does.
        patterns: of each layer's attention, by which its work is counted; None of a layer without attention.
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
    projections: int
    head_parameters: int
    linear_parameters: int
    lora: bool
    lora_mlp: bool
    embedding_trains: bool
    head_trains: bool
    patterns: tuple[Pattern | None, ...]

    def to_json(self) -> dict[str, Any]:
        """Every size; of the patterns how many layers have each: `{"Window(size=512)": 5, "Full()": 1}`."""
        return vars(self) | {"patterns": dict(Counter(str(pattern) for pattern in self.patterns))}

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
    override_rope(config, settings.rope)
    return config, "the published sizes (align/planning/known.py)"


def measure(config: PreTrainedConfig, settings: ModelSettings) -> Architecture:
    """Builds the model and its adapters on the meta device, where tensors have sizes and no values, and counts.

    Args:
        config: the model's.
        settings: its adapter.

    Raises:
        UnknownModelError: a mixture of experts or layers that keep a state, whose memory and time these formulas do
            not know, or a model with code of its own.
    """
    _refuse_unknown(config)
    # The class itself, and a composite's parts as if within such a call: under ZeRO-3 `from_config` would scatter the
    # weights.
    model_class: Any = library_class(config)
    with torch.device("meta"), set_zero3_state():
        model = add_lora(model_class(copy.deepcopy(config)), settings.lora)
    lm = find_causal_lm(model)
    head, embedding = lm.get_output_embeddings(), lm.get_input_embeddings()
    layers = list(decoder_layers(lm))
    largest = max(layers, key=_count)
    lora = settings.lora.r > 0
    return Architecture(
        layers=len(layers),
        **_widths(text_config(config)),
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        parameters=_count(model),
        trainable=_count(model, trainable=True),
        layer_parameters=_count(largest),
        layer_trainable=_count(largest, trainable=True),
        projections=_projections(largest),
        head_parameters=_count(head),
        linear_parameters=_linear_parameters(lm, head),
        lora=lora,
        lora_mlp=lora and bool(_MLP & set(settings.lora.target_modules)),
        embedding_trains=_count(embedding, trainable=True) > 0,
        head_trains=_count(head, trainable=True) > 0,
        patterns=attention_patterns(text_config(config)),
    )


def _refuse_unknown(config: PreTrainedConfig) -> None:
    """Raises UnknownModelError for a model that the formulas do not describe."""
    count = experts(config)
    if count > 1:
        raise UnknownModelError(
            f"{config.model_type} models are mixtures of {count} experts, which align plan does not know."
        )
    if keeps_state(config):
        raise UnknownModelError(
            f"{config.model_type} models have layers that keep a state, which align plan does not know."
        )
    if library_class(config) is None:
        raise UnknownModelError(
            f"{config.model_type} models are not the library's own: align plan cannot count them."
        )


def _widths(config: PreTrainedConfig) -> dict[str, int]:
    """Widths and heads of the widest layer as the configuration names them; what it leaves out the library has.

    Args:
        config: of the text model, where the whole one has others beside it.
    """

    def widest(name: str) -> int | None:
        return max((value for value in of_layers(config, name) if isinstance(value, int)), default=None)

    heads = widest("num_attention_heads")
    if heads is None:
        raise UnknownModelError(
            f"{config.model_type} models are not made of attention and MLPs: align plan cannot count them."
        )
    return {
        "hidden": config.hidden_size,
        "intermediate": widest("intermediate_size") or 4 * config.hidden_size,
        "heads": heads,
        "kv_heads": widest("num_key_value_heads") or heads,
        "head_dim": widest("head_dim") or config.hidden_size // heads,
        "vocabulary": config.vocab_size,
    }


def _count(module: nn.Module, *, trainable: bool = False) -> int:
    """Distinct parameters, shared ones once: a linear layer from 4 to 3 with its bias has 15."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _linear_parameters(model: nn.Module, head: nn.Module) -> int:
    """Weights of all linear layers but the head."""
    linear = (module for module in model.modules() if isinstance(module, nn.Linear) and module is not head)
    return sum(module.weight.numel() for module in linear)


def _projections(layer: nn.Module) -> int:
    """Parameters that make queries, keys and values of the layer's input."""
    names = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value")
    return sum(_count(m) for name, m in layer.named_modules() if name.rsplit(".", 1)[-1] in names)
