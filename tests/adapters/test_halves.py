"""The half that HFT trains: how much of each kind, on the names of real models, and of what the draw depends."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from align.adapters.halves import trained_half
from tests.tiny import tiny_composite, tiny_model

# vocabulary, width, inner width, layers, heads, key-value heads, tied → weights that train on average, and of all
PUBLISHED = {
    "SmolLM2-135M": ((49152, 576, 1536, 30, 9, 3, True), 81_413_568, 0.605238),
    "Llama-2-7B": ((32000, 4096, 11008, 32, 32, 32, False), 3_500_281_856, 0.519452),
    "Llama-3.1-8B": ((128256, 4096, 14336, 32, 32, 8, False), 4_540_469_248, 0.565420),
}


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def llama_shapes(sizes: tuple[int, int, int, int, int, int, bool]) -> dict[str, tuple[int, ...]]:
    vocabulary, width, inner, layers, heads, kv_heads, tied = sizes
    with torch.device("meta"):
        return shapes_of(
            AutoModelForCausalLM.from_config(
                LlamaConfig(
                    vocab_size=vocabulary,
                    hidden_size=width,
                    intermediate_size=inner,
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                    num_key_value_heads=kv_heads,
                    tie_word_embeddings=tied,
                )
            )
        )


def count(shapes, names) -> int:
    return sum(math.prod(shapes[name]) for name in names)


@pytest.mark.parametrize("name", PUBLISHED)
def test_expected_share(name):
    """The mean over draws is the published count; with grouped keys and values one draw is not half (up to 3 to 1)."""
    sizes, expected, share = PUBLISHED[name]
    shapes = llama_shapes(sizes)
    draws = [count(shapes, trained_half(shapes, scope="category", seed=seed)) for seed in range(40)]
    deviation = np.std(draws, ddof=1) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - expected) <= 4 * deviation + 1e-3
    assert expected / count(shapes, shapes) == pytest.approx(share, abs=5e-7)


def in_layer(names, number: int, part: str) -> int:
    return sum(f".layers.{number}.{part}" in name for name in names)


def test_categories_of_each_layer():
    """30 layers: 2 of 4 attention matrices and 1 of 2 norms in each; 2 of 3 MLP matrices in 15 layers, 1 in 15."""
    shapes = llama_shapes(PUBLISHED["SmolLM2-135M"][0])
    chosen = trained_half(shapes, scope="category", seed=1)
    assert {name for name in shapes if ".layers." not in name} <= chosen
    for layer in range(30):
        assert in_layer(chosen, layer, "self_attn.") == 2
        assert sum(f".layers.{layer}." in name and "norm" in name for name in chosen) == 1
    assert sorted(in_layer(chosen, layer, "mlp.") for layer in range(30)) == [1] * 15 + [2] * 15
    pairs = {
        frozenset(name.split(".")[-2] for name in chosen if f".layers.{layer}.self_attn." in name)
        for layer in range(30)
    }
    assert len(pairs) == 6  # every pair of the four is drawn somewhere


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_halves_of_layers_and_of_the_model(scope):
    shapes = llama_shapes(PUBLISHED["SmolLM2-135M"][0])
    chosen = trained_half(shapes, scope=scope, seed=1)
    inside = [name for name in chosen if ".layers." in name]
    matrices = [name for name in inside if "norm" not in name]
    assert (len(matrices), len(inside) - len(matrices)) == (30 * 7 // 2, 30)
    whole = {layer for layer in range(30) if sum(f".layers.{layer}." in name for name in inside) == 9}
    assert len(whole) == (15 if scope == "layer" else 0)


@pytest.mark.parametrize("scope", ["category", "layer", "model"])
def test_the_draw_depends_on_names_and_seed_alone(scope):
    shapes = llama_shapes(PUBLISHED["SmolLM2-135M"][0])
    chosen = trained_half(shapes, scope=scope, seed=3)
    names = list(shapes)
    random.Random(0).shuffle(names)
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state()
    assert trained_half({name: shapes[name] for name in names}, scope=scope, seed=3) == chosen
    assert torch.equal(torch.get_rng_state(), before)
    assert trained_half(shapes, scope=scope, seed=4) != chosen


def test_a_bias_goes_with_its_matrix():
    chosen = trained_half(shapes_of(tiny_model("qwen2")), scope="category", seed=0)
    for layer in range(2):
        for leaf in "qkv":
            unit = f"model.layers.{layer}.self_attn.{leaf}_proj"
            assert (f"{unit}.weight" in chosen) is (f"{unit}.bias" in chosen)


def test_fused_matrices_count_as_one_each():
    """Phi-3 has two matrices in its attention and two in its MLP: one of each trains."""
    chosen = trained_half(shapes_of(tiny_model("phi3")), scope="category", seed=0)
    for layer in range(2):
        assert (in_layer(chosen, layer, "self_attn."), in_layer(chosen, layer, "mlp.")) == (1, 1)


def test_a_vision_tower_does_not_move_the_draw_of_the_text_part():
    shapes = shapes_of(tiny_composite("gemma3"))
    text = {name: shape for name, shape in shapes.items() if "language_model" in name}
    both = trained_half(shapes, scope="category", seed=0)
    assert trained_half(text, scope="category", seed=0) == both & set(text)
    tower = {name for name in shapes if "vision_tower" in name and ".layers." in name}
    assert tower - both and tower & both


def test_what_cannot_be_halved_is_said():
    with pytest.raises(ValueError, match="scope=rows is not known: use one of category, layer, model"):
        trained_half({"model.layers.0.q.weight": (2, 2)}, scope="rows", seed=0)
    with pytest.raises(ValueError, match="no parameter lies in a numbered layer"):
        trained_half({"embed.weight": (2, 2)}, scope="category", seed=0)
