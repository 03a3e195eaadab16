"""Small copies keep what decides on the code that runs: kinds of layers, ratios of sizes, patterns."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING

from align.longseq.small_model import build_small
from align.models.loading import library_class
from align.models.small import VOCABULARY, WIDTH, WINDOW, few_layers, kept_layers, small


def test_the_first_layer_of_every_kind_is_kept():
    """Six layers: a window in all but the third and sixth, the first one dense: kinds begin at 0, 1 and 2."""
    window, full = "sliding_attention", "full_attention"
    types = [window, window, full, window, window, full]
    mlps = ["dense", *["sparse"] * 5]
    assert kept_layers({}, {"layer_types": types, "mlp_layer_types": mlps}, 6) == [0, 1, 2]
    assert kept_layers({"first_k_dense_replace": 1}, {"layer_types": types}, 6) == [0, 1, 2]
    assert kept_layers({"num_kv_shared_layers": 1}, {"layer_types": types}, 6) == [0, 2, 5]
    assert kept_layers({"mlp_only_layers": [4]}, {"layer_types": types}, 6) == [0, 2, 4]


def test_two_layers_are_kept_where_all_are_alike():
    assert kept_layers({}, {}, 80) == [0, 1]
    assert kept_layers({}, {}, 1) == [0]


def test_a_large_configuration_becomes_small_in_everything():
    """Qwen3 of 235B parameters: no number is left that takes memory or time."""
    made = small(
        CONFIG_MAPPING["qwen3_moe"](
            hidden_size=4096,
            intermediate_size=12_288,
            moe_intermediate_size=1536,
            num_hidden_layers=94,
            num_attention_heads=64,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            attention_dropout=0.1,
        )
    )
    assert (made.hidden_size, made.num_hidden_layers, made.vocab_size) == (WIDTH, 2, VOCABULARY)
    assert (made.num_attention_heads, made.num_key_value_heads, made.head_dim) == (4, 2, 16)
    assert (made.num_experts, made.num_experts_per_tok) == (4, 2)
    assert made.attention_dropout == 0


@pytest.mark.parametrize(("kv", "kept"), [(32, 4), (8, 2), (1, 1)])
def test_the_share_of_key_value_heads_stays(kv, kept):
    """As many as heads, some between, one: each is other code."""
    made = small(CONFIG_MAPPING["llama"](num_attention_heads=32, num_key_value_heads=kv))
    assert made.num_key_value_heads == kept


def test_windows_and_their_layers_stay():
    made = small(CONFIG_MAPPING["gemma3_text"]())
    assert made.layer_types == ["sliding_attention", "full_attention"]
    assert made.sliding_window == WINDOW
    assert small(CONFIG_MAPPING["mistral"](sliding_window=None)).sliding_window is None


def test_values_narrower_than_keys_stay_so():
    made = small(CONFIG_MAPPING["deepseek_v3"]())
    assert made.v_head_dim < made.qk_nope_head_dim + made.qk_rope_head_dim
    alike = small(CONFIG_MAPPING["glm4_moe_lite"]())
    assert alike.v_head_dim == alike.qk_nope_head_dim + alike.qk_rope_head_dim
    assert (made.num_hidden_layers, made.first_k_dense_replace) == (2, 1)


def test_lists_of_the_rotary_embedding_fit_the_small_head():
    factors = [1.0 + i for i in range(48)]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": factors, "long_factor": factors}
    rope["original_max_position_embeddings"] = 4096
    made = small(CONFIG_MAPPING["phi3"](rope_parameters=rope))
    assert len(made.rope_parameters["short_factor"]) == 8 == len(made.rope_parameters["long_factor"])
    sections = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = small(CONFIG_MAPPING["qwen2_vl"](text_config={"rope_parameters": sections})).get_text_config()
    assert sum(text.rope_parameters["mrope_section"]) == 8


def test_a_layer_with_sizes_of_its_own_keeps_the_difference():
    """Gemma-4's layers with full attention have wider heads."""
    made = small(CONFIG_MAPPING["gemma4_text"]())
    model = build_small(library_class(made), CONFIG_MAPPING["gemma4_text"]())
    widths = [layer.self_attn.head_dim for layer in model.model.layers]
    assert widths == [16, 32]


def test_the_users_configuration_is_left_alone():
    config = CONFIG_MAPPING["gemma3"]()
    before = config.to_json_string()
    small(config)
    few_layers(config, vocabulary=64)
    assert config.to_json_string() == before


def test_few_layers_keep_heads_and_widths():
    made = few_layers(CONFIG_MAPPING["gemma3_text"](hidden_size=640, head_dim=256), vocabulary=512)
    assert (made.hidden_size, made.head_dim, made.vocab_size) == (640, 256, 512)
    assert made.layer_types == ["sliding_attention", "full_attention"]
    made = few_layers(CONFIG_MAPPING["gemma4_text"](), vocabulary=512)
    assert (made.vocab_size, made.vocab_size_per_layer_input) == (512, 512)


def test_a_small_model_has_the_same_wide_weights_every_time():
    config = CONFIG_MAPPING["qwen3"]()
    kind = library_class(config)
    torch.manual_seed(7)
    first, second = build_small(kind, config), build_small(kind, config)
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name
        assert one.dtype == torch.float64 and float(one.detach().std()) > 0.05, name
