"""Real families with their real patterns on a shared prefix: the loss and every gradient, to 1e-9 of padded rows'.

Models of two or three random layers in float64 throughout, one of every kind that the family has, windows of 5 or 6
tokens in rows of 29 and more: windows with full attention between them, sinks, latent attention, factors and caps of
the logits, experts, layers without rotary embedding. One prompt's positions are torn apart, as synthesised ones are.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING

from align.core.errors import UserError
from align.data.examples import TokenizedExample
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.numeric import LIBRARY, compare, outcome
from align.longseq.plain_rows import plain_pair_logps
from align.longseq.small_model import build_small
from align.models.loading import library_class
from align.models.structure import find_causal_lm
from align.models.text_part import set_attention, text_config
from benchmarks.architecture_worker import Architecture
from losses import logo_loss
from tests.longseq.doubled import doubled
from tests.longseq.plain import make_example

# Family → what of it is at stake here.
FAMILIES = {
    "gemma3_text": "windows, five to one, a rotary embedding for each kind",
    "gemma4_text": "windows beside wider heads",
    "gpt_oss": "sinks and windows, experts",
    "olmo3": "windows, three to one",
    "ministral": "a window in every layer",
    "cohere2": "windows, factor of the logits, layers side by side",
    "exaone4": "windows; full attention without rotary embedding",
    "deepseek_v3": "latent attention, experts in groups",
    "glm4_moe_lite": "latent attention, experts",
    "minicpm3": "latent attention, factors everywhere",
}
MORE = {
    "llama4_text": "chunks",
    "mistral": "a window in every layer",
    "gemma3n_text": "keys and values shared between layers",
    "granite_swa": "sinks and windows, factors",
    "mimo_v2_flash": "sinks in some layers, values narrower than keys",
    "nanochat": "capped logits",
    "beam": "a factor for each token's queries, which layers are handed",
    "cohere": "factor of the logits",
    "deepseek_v2": "latent attention",
    "longcat_flash": "latent attention, two a layer",
    "smollm3": "layers without rotary embedding",
    "phimoe": "experts",
    "qwen3_moe": "experts",
    "laguna": "heads by layer",
    "gemma3": "the text part of a composite",
    "qwen2_vl": "the text part of a composite, positions in sections",
    "mistral3": "the text part of a composite",
}
# What is kept for the backward pass, and how layers are cut.
LEVERS = {
    "none": {"mode": "none"},
    "full": {"mode": "full"},
    "keep_attention": {"mode": "keep_attention"},
    "tiled": {"mode": "full", "mlp_chunk": 7},
}
# Its layers take several copies of the hidden states, whose tokens lie elsewhere: tiles refuse it.
NOT_TILED = ("gemma3n_text",)
TOLERANCE = 1e-9


def model_of(family: str) -> nn.Module:
    """A small model from the family's own default configuration."""
    config = Architecture(CONFIG_MAPPING[family]).config()
    model_class = library_class(config)
    assert model_class is not None
    return build_small(model_class, config)


def rows() -> list[TokenizedExample]:
    """Two prompts with one chosen and three rejected answers each, the second one's positions with a jump of 30."""
    rng = np.random.default_rng(0)
    return [
        make_example(rng, prompt=21, answers=[8, 3, 5, 1]),
        make_example(rng, prompt=13, answers=[2, 7, 1, 6], jump=30),
    ]


def loss_of(logps) -> torch.Tensor:
    """LOGO's, whose gradient reaches every answer."""
    return logo_loss(logps, beta=2.5, gamma=0.25, sft_weight=0.1).loss.mean()


def assert_exact(family: str, *, mode: str, mlp_chunk: int | None = None) -> None:
    examples, model = rows(), model_of(family)
    lm = find_causal_lm(model)
    with doubled():
        set_attention(lm, LIBRARY)
        expected = outcome(model, lambda: plain_pair_logps(model, examples), loss_of=loss_of)
        set_attention(lm, ATTENTION)
        apply_checkpointing(model, mode, mlp_chunk=mlp_chunk)
        actual = outcome(model, lambda: pair_logps(model, pack(examples), chunk_size=8), loss_of=loss_of)
    found = compare(actual, expected, TOLERANCE)
    assert found.exact, f"{found.parameter}: loss {found.loss:.1e}, gradient {found.gradient:.1e}"
    assert sum(value is not None and bool(value.any()) for value in expected[1].values()) > 8


def assert_exact_or_refused(family: str, lever: str) -> None:
    refused = lever == "tiled" and family in NOT_TILED
    with pytest.raises(UserError, match=r"set memory\.mlp_chunk=null") if refused else nullcontext():
        assert_exact(family, **LEVERS[lever])


@pytest.mark.parametrize("lever", LEVERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_family(family, lever):
    assert_exact_or_refused(family, lever)


@pytest.mark.slow
@pytest.mark.parametrize("lever", LEVERS)
@pytest.mark.parametrize("family", MORE)
def test_gradients_of_more_families(family, lever):
    assert_exact_or_refused(family, lever)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_here_what_it_is_tested_for(family):
    """A small copy that lost the window, the sinks or the narrow values would prove nothing."""
    model = model_of(family)
    text = text_config(find_causal_lm(model).config)
    types, what = set(getattr(text, "layer_types", None) or ()), FAMILIES[family]
    assert text.num_hidden_layers >= 2
    if "window" in what:
        assert 1 < text.sliding_window < 13
        assert "every layer" in what or types == {"sliding_attention", "full_attention"}
    if "sinks" in what:
        assert any("sink" in name and bool(value.any()) for name, value in model.named_parameters())
    if "latent" in what:
        assert text.kv_lora_rank > 0
        assert family == "glm4_moe_lite" or text.v_head_dim < text.qk_nope_head_dim + text.qk_rope_head_dim
    if "wider" in what:
        assert len({module.head_dim for module in model.modules() if hasattr(module, "head_dim")}) == 2
