"""Small copies of an architecture: the same kinds of layers in a model that a CPU runs in a moment.

`few_layers` keeps heads and widths and cuts layers and vocabulary: what `align verify` computes with. `small` makes
everything small and is what the check at start and the table of architectures run; `one_of_each` cuts layers alone, for
`align plan`, which counts without values. All keep one layer of every kind that the configuration has: of 48 layers,
every sixth with full attention and the others with a window, the first one dense and the others with experts, three
stay. Sizes go by the names that configurations give them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

from align.models.small_exceptions import EXCEPTIONS

WIDTH = 64
HEADS = 4
VOCABULARY = 128
MOST_LAYERS = 8
WINDOW = 6  # tokens; a row of the check is longer, so that a window hides something
LAYER_COUNTS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"),
    *("num_decoder_layers", "num_encoder_layers", "num_blocks", "num_layers_per_stack", "depth"),
)

# Size by name, the first pattern that fits; what there is one of stays one.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"linear_num_value_heads|num_mamba_heads|mamba_num_heads|mamba_n_heads", 2 * HEADS),
    (r"linear_num_key_heads|n_groups|mamba_n_groups|mamba_ngroups", 2),
    (r"(\w+_)?(num|n)_(attention_)?heads?|attention_heads|(de|en)coder_attention_heads|n_mamba_heads", HEADS),
    (r"num_(de|en)coder_attention_heads|linear_num_heads|index_n_heads", HEADS),
    (r"qk_nope_head_dim|swa_head_dim|(linear_(key_|value_)?)head_dim|mamba_d_head|mamba_head_?dim", 16),
    (r"global_head_dim|head_dim|kv_channels|dim_head|d_head|attention_head_(dim|size)", 16),
    (r"qk_rope_head_dim|index_head_dim|rotary_dim", 8),
    (r"q_lora_rank|o_lora_rank", 24),
    (r"kv_lora_rank|ssm_state_size|state_size|mamba_d_state|(mamba_)?chunk_size|adapter_rank", 16),
    (
        r"mamba_dt_rank|time_step_rank|laurel_rank|hidden_size_per_layer_input|hc_lowrank|router_hidden_size",
        8,
    ),
    (r"gated_norm_rank|d_rel", 8),
    (r"mamba_d_ssm", 2 * WIDTH),
    (r"hidden_size|n_embd|d_model|(emb|embedding)_dim|lru_width|attention_hidden_size", WIDTH),
    (r"(input_|output_)?embedding_size|word_embed_proj_dim|projection_dim|embed_dim", WIDTH),
    (r"(moe_|expert_ffn_|shared_experts?_|moe_shared_expert_)(intermediate|hidden)_size", 32),
    (r"intermediate_size(_mlp)?|\w*_intermediate_size|(\w+_)?ffn_dim|ffn_hidden_size|dff|dim_ff|n_inner", 96),
    (r"feed_forward_size|d_inner", 96),
    (r"\w+_hidden_size", WIDTH),
    (r"(\w*_)?vocab(_size)?(_per_layer_input)?|ngram_vocab_size_base", VOCABULARY),
    (r"(n_routed|num_local|num|moe_num)_experts", 4),
    (r"zero_expert_num|(n_shared|num_shared|moe_num_shared)_experts", 2),
    (r"num_experts_per_tok(en)?|(moe_)?top_?k|moe_k|n_group|num_expert_group", 2),
    (
        r"sliding_window(_size)?|window_size|attention_window_size|local_attention|attention_chunk_size",
        WINDOW,
    ),
    (r"indexer_head_dim", 16),
    (r"indexer_budget|index_topk|keep_window_size", 4),
    (r"indexer_compress_ratio|index_block_size|index_topk_blocks|index_local_blocks|index_kpool", 2),
)
_VOCABULARIES = r"(\w+_)?vocab_size(_per_layer_input)?"  # Gemma-4 embeds a token anew for each layer
# Tokens with a meaning of their own, which rows of the check leave out: they are drawn from FIRST_TOKEN on.
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "mask_token_id": 3}
_TOKENS |= {"cls_token_id": 3, "eod_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": 2}
FIRST_TOKEN = 4
# Numbers of layers that stand in a list by their index, and of the first layers that are unlike the others.
_INDICES = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "hybrid_layer_ids", "cross_attention_layers")
_FIRST = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "moe_layer_start_index")
_LAST = ("num_kv_shared_layers",)
# What a configuration works out by itself from others.
_DERIVED = ("layer_types",)


def few_layers(config: PreTrainedConfig, *, vocabulary: int) -> PreTrainedConfig:
    """The same heads and widths with one layer of every kind, and no dropout; weights are drawn wide.

    Args:
        config: of a causal language model.
        vocabulary: tokens that it knows.
    """
    values = _without_noise(_plain(config))
    for name in [name for name in values if re.fullmatch(_VOCABULARIES, name)]:
        values[name] = vocabulary
    if isinstance(values.get("intermediate_size"), int):
        values["intermediate_size"] = min(values["intermediate_size"], values.get("hidden_size") or WIDTH)
    return _made(config, _with_layers(values), lambda part: few_layers(part, vocabulary=vocabulary))


def one_of_each(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same widths, experts and vocabulary with one layer of every kind: for tensors that have shapes alone.

    Args:
        config: of a causal language model, or of one that holds a text model's.
    """
    values = _with_layers(_without_noise(_plain(config)), resize=lambda own, _: dict(own))
    made = _made(config, values, one_of_each)
    made._experts_implementation = None  # as the class has it by itself: one after the other they need values
    return made


def small(config: PreTrainedConfig, *, keep: tuple[str, ...] = ()) -> PreTrainedConfig:
    """The same architecture small in everything: widths of 64, four heads, four experts, windows of 6 tokens.

    Ratios that decide on the code that runs are kept: one key-value head, as many as heads, or some between; a rotary
    part of a head; values narrower than keys; an expert a token or several.

    Args:
        config: of a causal language model; one that holds a text model's is made small in every part.
        keep: names of sizes that are left as they are.
    """
    values = _without_noise(_plain(config))
    after = {name: value if name in keep else _size(name, value, values) for name, value in values.items()}
    after = _with_ratios(values, after)
    made = _with_layers(after) | EXCEPTIONS.get(config.model_type, {})
    return _made(config, made, lambda part: small(part, keep=keep))


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    """Every value of a configuration but those of parts, which are configurations of their own."""
    values = copy.deepcopy(config.to_dict())
    return {name: value for name, value in values.items() if name != "transformers_version"}


def _parts(config: PreTrainedConfig) -> Iterator[tuple[str, PreTrainedConfig]]:
    """The configurations that a composite holds, by name."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield name, value


def _without_noise(values: dict[str, Any]) -> dict[str, Any]:
    """No dropout, no noise, no tokens with a meaning, no quantisation; weights drawn wide."""
    for name, value in values.items():
        number = isinstance(value, float | int) and not isinstance(value, bool)
        if number and re.search(r"drop|pdrop|jitter_noise", name):
            values[name] = type(value)(0)
        if name in _TOKENS and value is not None:
            values[name] = _TOKENS[name]
        if number and re.fullmatch(r"init_std|(\w+_)?initializer_range", name):
            values[name] = 1.6 / (values.get("hidden_size") or WIDTH) ** 0.5
    for name in ("quantization_config", "auto_map", "dtype"):
        values.pop(name, None)
    return values


def _size(name: str, value: Any, values: Mapping[str, Any]) -> Any:
    """A number made small by its name; whatever else as it is."""
    if not isinstance(value, int) or isinstance(value, bool) or value <= 1:
        return value
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, name):
            return size - 1 if size == WINDOW and value % 2 else size
    if name == "max_position_embeddings" and not values.get("rope_parameters"):
        return min(value, 512)
    return value


def _with_ratios(before: Mapping[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What has to fit other sizes, as it did before."""
    for name in ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups"):
        heads = before.get(name.replace("key_value", "attention")) or before.get("num_attention_heads")
        if before.get(name) and heads:
            after[name] = HEADS if before[name] >= heads else 1 if before[name] == 1 else max(1, HEADS // 2)
    hidden = before.get("hidden_size") or 0
    if before.get("head_dim") and before.get("kv_lora_rank"):
        after["head_dim"] = 8 if before["head_dim"] == before.get("qk_rope_head_dim") else after["head_dim"]
    nope, rope, wide = (before.get(name) for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    if isinstance(nope, int) and isinstance(rope, int) and wide:
        after["v_head_dim"] = 24 if wide == nope + rope else 16
        after["qk_head_dim"] = 24
    if before.get("intermediate_size") and hidden and before["intermediate_size"] == 2 * hidden:
        after["intermediate_size"] = 2 * WIDTH
    if before.get("num_experts_per_tok") == 1:
        after["num_experts_per_tok"] = 1
    if before.get("topk_group"):
        after["topk_group"] = 1
    if isinstance(before.get("rope_parameters"), Mapping):
        after["rope_parameters"] = _rope(before["rope_parameters"], after)
    return after


def _rope(parameters: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of the rotary embedding cut to a small head: factors of LongRoPE, sections of images' positions."""
    found: dict[str, Any] = {}
    head = after.get("head_dim") or (after.get("hidden_size") or WIDTH) // HEADS
    part = parameters.get("partial_rotary_factor") or after.get("partial_rotary_factor") or 1.0
    half = max(1, int(head * part) // 2)
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            found[name] = _rope(value, after)
        elif name in ("short_factor", "long_factor") and isinstance(value, list):
            found[name] = [value[i * len(value) // half] for i in range(half)]
        elif name == "mrope_section" and isinstance(value, list):
            found[name] = [half - 2 * (half // 3), half // 3, half // 3]
        else:
            found[name] = value
    return found


def _own_sizes(own: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What one layer has of its own, made small as the others' values are: `head_dim` 512 beside 256: 32 beside 16."""
    found = {name: _size(name, value, values) for name, value in own.items()}
    if "qk_nope_head_dim" in own:
        found |= {"head_dim": 24, "num_key_value_heads": HEADS}
    elif "head_dim" in own:
        found["head_dim"] = 32
    return found


def _with_layers(
    values: dict[str, Any],
    *,
    resize: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] = _own_sizes,
) -> dict[str, Any]:
    """One layer of every kind, in their order, two at least; lists with an entry a layer are cut alike.

    Args:
        values: of the configuration, which are changed.
        resize: what becomes of the sizes that a layer has of its own.
    """
    counts = [name for name in LAYER_COUNTS if isinstance(values.get(name), int)]
    if not counts:
        return values
    layers = max(values[name] for name in counts)
    lists = {
        name: value
        for name, value in values.items()
        if isinstance(value, list) and len(value) == layers and layers > 0 and name not in _INDICES
    }
    kept = kept_layers(values, lists, layers)
    for name, value in lists.items():
        values[name] = [value[i] for i in kept]
    for name in _INDICES:
        if isinstance(values.get(name), list):
            values[name] = [place for place, i in enumerate(kept) if i in values[name]]
    for name in _FIRST:
        if isinstance(values.get(name), int) and not isinstance(values.get(name), bool):
            values[name] = sum(i < values[name] for i in kept)
    for name in _LAST:
        if isinstance(values.get(name), int):
            values[name] = sum(i >= layers - values[name] for i in kept)
    if isinstance(values.get("per_layer_config"), Mapping):
        own = {int(i): value for i, value in values["per_layer_config"].items()}
        values["per_layer_config"] = {
            place: resize(own[i], values) for place, i in enumerate(kept) if i in own
        } or None
    return values | {name: len(kept) for name in counts if values[name] > 0}


def kept_layers(values: Mapping[str, Any], lists: Mapping[str, list[Any]], layers: int) -> list[int]:
    """The first layer of every kind: `[0, 1, 5]`; a kind is all that lists and numbers of layers say of a layer."""
    own = values.get("per_layer_config")
    own = {int(i) for i in own} if isinstance(own, Mapping) else set()
    kinds: dict[str, int] = {}
    for i in range(layers):
        traits: list[Any] = [value[i] for value in lists.values()]
        traits += [i in values[name] for name in _INDICES if isinstance(values.get(name), list)]
        traits += [i < values[name] for name in _FIRST if isinstance(values.get(name), int)]
        traits += [i >= layers - values[name] for name in _LAST if isinstance(values.get(name), int)]
        kinds.setdefault(repr((traits, i in own)), i)
    kept = sorted(kinds.values())[:MOST_LAYERS]
    others = [i for i in range(layers) if i not in kept]
    return sorted(kept + others[: max(0, 2 - len(kept))])


def _made(
    config: PreTrainedConfig,
    values: dict[str, Any],
    make_part: Callable[[PreTrainedConfig], PreTrainedConfig],
) -> PreTrainedConfig:
    """A configuration of the same class with these values, its parts made small too."""
    parts = {name: make_part(part).to_dict() for name, part in _parts(config)}
    for name in _DERIVED:
        if name not in type(config)().to_dict():
            values.pop(name, None)
    made: PreTrainedConfig = type(config)(**(values | parts))
    made._experts_implementation = "eager"  # the kernel for mixtures of experts takes no float64
    return made
