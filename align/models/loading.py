"""Models and tokenizers: Hub id, folder, or the embedded SmolLM2; four-bit weights, RoPE, extra tokens."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from align.core.bars import weight_bars_off
from align.core.errors import AlignWarning, UserError
from align.models.distance_limit import check_limit, note_rotary
from align.models.extra_tokens import add_rows, add_tokens, extend_config
from align.models.kernels import check_kernels, fuse, kernels_on, say_fused
from align.models.paths import check_weights, resolve_path
from align.models.patterned_attention import patterned
from align.models.processor_files import processor_template
from align.models.quantization import quantization_config, require_quantization
from align.models.query_scale import override_query_scale, scale_of, scale_words
from align.models.renamings import forget_unused_renamings
from align.models.rope import override_rope
from align.models.settings import EXPERTS, LIGER, ModelSettings
from align.models.structure import set_reading
from align.models.text_part import attention_by_part, is_composite, text_config
from align.patterns.layers import keep_patterns


def load_tokenizer(
    path: str, *, trust_remote_code: bool = False, revision: str | None = None, key: str = "model.path"
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; its pad token is never used, since nothing is padded. `key` named the model.

    A chat template that its processor alone has becomes the tokenizer's.
    """
    _warn_of_remote_code(path, trust_remote_code)
    folder = resolve_path(path, key=key)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, revision=revision
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{key}={path}: no tokenizer could be loaded ({loading_problem(error)}).") from error
    if not tokenizer.is_fast:
        raise UserError(f"{key}={path}: its tokenizer has no fast version, which character offsets need.")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = processor_template(folder, revision=revision)
    return tokenizer


def model_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of the group `model`, with its extra tokens."""
    return _extended(settings)[0]


def _extended(settings: ModelSettings) -> tuple[PreTrainedTokenizerBase, list[int], int]:
    """Tokenizer, the ids of `model.extra_tokens`, and how many tokens it had before."""
    tokenizer = load_tokenizer(
        settings.path, trust_remote_code=settings.trust_remote_code, revision=settings.revision
    )
    known = len(tokenizer)
    ids = add_tokens(tokenizer, settings.extra_tokens, path=settings.path) if settings.extra_tokens else []
    return tokenizer, ids, known


def load_config(settings: ModelSettings, *, key: str = "model.path") -> PreTrainedConfig:
    """The model's configuration with RoPE overrides and extra tokens; reads no weights. `key` named the model."""
    config = _own_config(settings, key=key)
    if settings.extra_tokens:
        extend_config(config, _extended(settings)[1])
    return config


def _own_config(settings: ModelSettings, *, key: str = "model.path") -> PreTrainedConfig:
    """The same with the vocabulary that its checkpoint has."""
    _warn_of_remote_code(settings.path, settings.trust_remote_code)
    folder = resolve_path(settings.path, key=key)
    try:
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=settings.trust_remote_code, revision=settings.revision
        )
    except StrictDataclassError as error:
        raise UserError(
            f"{key}={settings.path}: transformers {transformers.__version__} does not know what its config.json says "
            f"({loading_problem(error.__cause__ or error)}): correct that, or install the version of transformers that "
            "the model was made for."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}={settings.path}: no model could be loaded ({loading_problem(error)})."
        ) from error
    window = window_of(config)
    override_rope(config, settings.rope)
    override_query_scale(config, settings.query_scale, window=window)
    text = text_config(config)
    keep_patterns(text, settings.layer_patterns)
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False  # for the library's loss; longseq/balance.py computes ours
    return config


def check_reference_tokens(reference: ModelSettings, policy: ModelSettings) -> None:
    """Refuses a reference that would read other ids, or has no rows for some: both read in the policy's tokens.

    Raises:
        UserError: naming what differs.
    """
    if policy.extra_tokens:
        ids, others = _extended(policy)[1], _extended(reference)[1]
        if ids != others:
            raise UserError(
                f"model.extra_tokens get the ids {ids} behind the tokens of model.path={policy.path} and {others} "
                f"behind those of reference.model={reference.path}: name a reference with the same tokenizer."
            )
    rows, known = (getattr(text_config(load_config(own)), "vocab_size", None) for own in (reference, policy))
    if rows is None or known is None or rows >= known:
        return
    needed = min(known, len(model_tokenizer(policy)))
    if rows < needed:
        raise UserError(
            f"reference.model={reference.path} has rows for {rows} tokens, and the policy reads {needed}: name a "
            "reference with the same tokenizer."
        )


def native_window(settings: ModelSettings) -> int | None:
    """Tokens that the checkpoint was made to read; None where `model.rope` stretches it on purpose."""
    if any(value is not None for value in (settings.rope.theta, settings.rope.type, settings.rope.factor)):
        return None
    return window_of(load_config(settings))


def window_of(config: PreTrainedConfig) -> int | None:
    """Positions that a configuration names; composites of text and images have it in their text part."""
    return getattr(text_config(config), "max_position_embeddings", None)


# The library's ways from a configuration to a class, in the order that a composite is looked for in. For some it has
# a class of the text part alone too (Llama-4, Qwen3.5), which would leave the rest of the checkpoint unread, and lost.
_WHOLE: tuple[tuple[Any, Any], ...] = (
    (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    (AutoModelForMultimodalLM, MODEL_FOR_MULTIMODAL_LM_MAPPING),
)
_TEXT: tuple[Any, Any] = (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING)


def auto_class(config: PreTrainedConfig) -> Any:
    """The library's door to a model of this configuration with all that its checkpoint holds."""
    return _door(config)[0]


def library_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The library's own class behind that door; None where there is none for such a configuration."""
    found: Any = _door(config)[1].get(type(config), None)
    return found


def _door(config: PreTrainedConfig) -> tuple[Any, Any]:
    doors = _WHOLE if is_composite(config) else ()
    return next((door for door in doors if type(config) in door[1]), _TEXT)


def causal_lm_class(settings: ModelSettings, config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class that `load_causal_lm` loads into; None where there is none for such a configuration."""
    remote = (getattr(config, "auto_map", None) or {}).get(auto_class(config).__name__)
    if settings.trust_remote_code and remote is not None:
        found: Any = get_class_from_dynamic_module(
            remote, resolve_path(settings.path), revision=settings.revision
        )
    else:
        found = library_class(config)
    return found


def load_causal_lm(
    settings: ModelSettings, *, attention: str | None = None, device: str | torch.device | None = None
) -> PreTrainedModel:
    """The causal language model in `settings.dtype`; of a composite all parts, of which text goes through one.

    Args:
        settings: group `model`; its `lora` part is not applied here.
        attention: an attention implementation of transformers, or one registered by `align.longseq`, for the text part;
            None is the library's that the class supports: `sdpa`, or `eager`.
        device: where to put it; None leaves it on the CPU (the Trainer moves it), four-bit weights on the
            process's GPU.

    Raises:
        UserError: what `settings.quantization` or `settings.kernels` needs is missing, or the model is not for it.
    """
    require_quantization(settings.quantization)
    check_weights(settings.path)
    settings = replace(settings, kernels=kernels_on(settings, device))
    config = _own_config(settings)
    check_kernels(settings, config)
    dtype = resolve_dtype(settings.dtype)
    quantization = quantization_config(settings.quantization, dtype)
    check_limit(config, library_class(config))
    with weight_bars_off():
        model = auto_class(config).from_pretrained(
            resolve_path(settings.path),
            config=config,
            dtype=dtype,
            attn_implementation=attention_to_load(config, attention),
            quantization_config=quantization,
            device_map=None if quantization is None else {"": device or torch.cuda.current_device()},
            trust_remote_code=settings.trust_remote_code,
            revision=settings.revision,
            **experts_keyword(settings),
        )
    if settings.extra_tokens:
        _, ids, known = _extended(settings)
        add_rows(model, ids, known=known)
    set_reading(model, settings.attention)
    note_rotary(model)
    if settings.kernels == LIGER:
        say_fused(model, fuse(model))
    forget_unused_renamings(model)
    said = scale_words(config) if settings.query_scale is None else None
    if said is not None:
        warnings.warn(said, AlignWarning, stacklevel=1)
    if device is not None and quantization is None:
        torch.nn.Module.to(model, device)
    return model


def attention_to_load(config: PreTrainedConfig, name: str | None) -> str | dict[str, str] | None:
    """What transformers is told to take as the text part's attention: `name`, or the form of it that scales queries.

    None is the library's that the class supports, or that of chosen patterns; with a query scale it is named here.
    """
    name = name or patterned(config)
    if name is None and scale_of(config) is not None:
        kind = library_class(config)
        name = "sdpa" if kind is None or kind._supports_sdpa else "eager"
    return attention_by_part(config, name)


def experts_keyword(settings: ModelSettings) -> dict[str, str]:
    """What tells transformers how to compute experts, where `model.moe.experts` does not leave it the choice."""
    name = EXPERTS[settings.moe.experts]
    return {} if name is None else {"experts_implementation": name}


def bfloat16_here() -> bool:
    """Whether this machine has a GPU that computes in bfloat16."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def resolve_dtype(name: str) -> torch.dtype:
    """`model.dtype` as a torch dtype."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name == "auto":
        return torch.bfloat16 if bfloat16_here() else torch.float32
    if name not in dtypes:
        raise UserError(f"model.dtype={name} is not known: use auto, {' or '.join(dtypes)}.")
    return dtypes[name]


def _warn_of_remote_code(path: str, trust_remote_code: bool) -> None:
    """Says once a process that a repository's own code will run."""
    if trust_remote_code:
        warnings.warn(
            f"trust_remote_code=true runs Python code that comes with {path}, with your rights on this "
            "machine: read it first, or pin a commit that you have read with model.revision.",
            AlignWarning,
            stacklevel=1,
        )


def loading_problem(error: BaseException) -> str:
    """A library's complaint in one line."""
    text = str(error).strip()
    if "trust_remote_code" in text:
        return "code that comes with it would have to run: read it, then allow it by trust_remote_code=true"
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
