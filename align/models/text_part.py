"""The text part of a checkpoint that holds more: what trains of Gemma-3, Mistral-3, Qwen-VL and their kind.

Such a composite has a text model's configuration inside its own (`text_config`), and beside its text decoder an
encoder of images or sound with a projector. Rows are text, so that only the decoder, its embedding and its head are
run and trained; the rest is kept, and saved as it came. A text model is its own text part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.query_scale.scale import STORED

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

# The library's attention → the same of scaled queries (scaled_attention.py), for models with a query scale.
SCALED = {"sdpa": "align_scaled", "eager": "align_scaled_products"}
# Attention of this project that scales by itself (longseq/attention.py, generation/prefix_attention.py).
SCALES = (
    "align_patterned",
    "align_shared",
    "align_torch",
    "align_cudnn",
    "align_fa2",
    "align_fa3",
    "align_fa4",
    "align_prefix",
)


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The text model's configuration: Gemma-3's `text_config`, and of a text model the one given.

    Raises:
        UserError: a composite in which no text decoder, or more than one, can be told from the rest.
    """
    try:
        text = config.get_text_config()
    except ValueError:  # as the library says that there are several
        text = None
    if text is config:
        return config
    inside = text is not None and any(getattr(config, key, None) is text for key in config.sub_configs)
    if text is None or not inside or _encodes(config) or _encodes(text):
        raise UserError(
            f"{config.model_type} models are composites in which no text decoder can be told from the rest, so that "
            "none is trained: use a text model's checkpoint, or a composite with a `text_config`."
        )
    return text


def _encodes(config: PreTrainedConfig) -> bool:
    """Whether an encoder reads the text and a decoder only what comes of it."""
    return bool(getattr(config, "is_encoder_decoder", False))


def is_composite(config: PreTrainedConfig) -> bool:
    """Whether the text part is one of several; raises as `text_config`."""
    return text_config(config) is not config


def of_layers(config: PreTrainedConfig, name: str) -> list[Any]:
    """What the text part's layers have under a key, each value once; empty where they have none.

    Gemma-4's heads are 256 wide in some layers and 512 in others, and the library refuses to give one for all.
    """
    text = text_config(config)
    layers = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]
    found: list[Any] = []
    for layer in layers:
        value = getattr(layer, name, None)
        if value is not None and value not in found:
            found.append(value)
    return found


def attention_by_part(config: PreTrainedConfig, name: str | None) -> str | dict[str, str] | None:
    """The attention `name` for the text part alone, as transformers takes it; other parts keep the library's.

    None is the library's that each class supports.

    The composite itself gets the name too: some make the text decoder's mask, which goes by it.

    Of a model with a query scale it is the form that scales.

    Raises:
        UserError: one that has no such form.
    """
    text = text_config(config)
    if name is not None and getattr(text, STORED, None) is not None:
        name = _that_scales(name)
    if text is config or name is None:
        return name
    return {"": name} | {key: name for key in config.sub_configs if getattr(config, key, None) is text}


def _that_scales(name: str) -> str:
    """The attention of scaled queries: this project's own scale by themselves."""
    import align.models.scaled_attention  # noqa: F401 - registers them

    if name not in (*SCALED, *SCALED.values(), *SCALES):
        raise UserError(
            f"The model's config.json has a query scale, which attention of type {name} does not know: load the model "
            f"with attn_implementation={' or '.join(SCALED)}."
        )
    return SCALED.get(name, name)


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Switches the text part's attention to the implementation that transformers knows as `name`."""
    by_part: Any = attention_by_part(model.config, name)
    model.set_attn_implementation(by_part)


def current_attention(model: PreTrainedModel) -> str:
    """The name of the text part's attention; that of scaled queries goes by the library's name."""
    name: str = text_config(model.config)._attn_implementation
    return next((own for own, scaled in SCALED.items() if scaled == name), name)


def text_decoder(model: PreTrainedModel) -> nn.Module:
    """What turns tokens into the last hidden states: layers, rotary embedding, final norm.

    Some classes name themselves as their decoder (Llama-4); of these it is the child with layers.

    Args:
        model: a causal language model (`find_causal_lm`).

    Raises:
        UserError: no module of the model's is that.
    """
    decoder = _named_decoder(model)
    wanted = text_config(model.config)
    fits = wanted is model.config or type(getattr(decoder, "config", None)) is type(wanted)
    if decoder is None or not fits:
        raise UserError(
            f"{type(model).__name__} gives no text decoder of its own, behind which the shared-prefix forward scores: "
            "use another model."
        )
    return decoder


def _named_decoder(model: PreTrainedModel) -> nn.Module | None:
    named = model.get_decoder()
    if named is model or named is model.get_output_embeddings():  # the latter as ModernBERT calls its head
        named = next((child for child in model.children() if hasattr(child, "get_input_embeddings")), None)
    if (
        getattr(named, "get_output_embeddings", _none)() is not None
    ):  # a model with a head inside the whole (Llama-4)
        return _named_decoder(named)
    return named if hasattr(named, "modules") else None


def _none() -> None:
    """The output embedding of what has none."""
    return


def text_modules(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The modules of the text part with their names in the model: decoder, embedding, head; of a text model all."""
    if not is_composite(model.config):
        return list(model.named_modules())
    tops = (text_decoder(model), model.get_input_embeddings(), model.get_output_embeddings())
    inside = {id(module) for top in tops if top is not None for module in top.modules()}
    return [(name, module) for name, module in model.named_modules() if id(module) in inside]


def other_parts(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The largest modules with weights and nothing of the text part in them, by name; none in a text model.

    Gemma-3's are `model.vision_tower` and `model.multi_modal_projector`.
    """
    if not is_composite(model.config):
        return {}
    text = {id(weight) for _, module in text_modules(model) for weight in module.parameters()}
    return dict(_without(model, text))


def _without(module: nn.Module, text: set[int], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules below `module` none of whose weights are `text`."""
    for name, child in module.named_children():
        weights = {id(weight) for weight in child.parameters()}
        if weights and not weights & text:
            yield f"{prefix}{name}", child
        elif weights - text:
            yield from _without(child, text, f"{prefix}{name}.")


def freeze_other_parts(model: PreTrainedModel) -> None:
    """Leaves the text part alone to train, in place."""
    if not is_composite(model.config):
        return
    text = {id(weight) for _, module in text_modules(model) for weight in module.parameters()}
    for weight in model.parameters():
        if id(weight) not in text:
            weight.requires_grad_(False)


def frozen_words(model: PreTrainedModel) -> str | None:
    """What is said once of a composite that trains; None of a text model."""
    others = list(other_parts(model))
    if not others:
        return None
    verb, they = ("is", "it") if len(others) == 1 else ("are", "they")
    return (
        f"{type(model).__name__} is a composite: its text part trains; {', '.join(others)} {verb} frozen, not run, and "
        f"saved as {they} came."
    )
