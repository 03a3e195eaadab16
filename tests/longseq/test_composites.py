"""Composites of text and images on rows of text: the shared prefix against the composite's own forward, padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from align.core.errors import UserError
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.probe import check_computed
from align.models.lora import add_lora
from align.models.settings import LoraSettings
from align.models.structure import find_causal_lm
from align.models.text_part import set_attention
from align.verification.small_copy import shrink
from losses.types import PairLogps
from tests.longseq.plain import assert_close, gradients, make_example, plain_pair_logps, randomise_lora_b
from tests.tiny import COMPOSITES, tiny_composite


def weighted(logps: PairLogps) -> torch.Tensor:
    return logps.chosen @ torch.tensor([1.0, -0.5]).double() - 0.3 * logps.rejected.double().sum()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", COMPOSITES)
def test_values_and_every_gradient_in_double_precision(kind, lora):
    """Log-probs to 1e-9; norms and angles are single precision in the library's code, which gradients show: 1e-6."""
    rng = np.random.default_rng(0)
    examples = [
        make_example(rng, prompt=24, answers=[7, 5], jump=100),
        make_example(rng, prompt=11, answers=[3, 6]),
    ]
    model = add_lora(tiny_composite(kind).double(), LoraSettings(r=4 if lora else 0))
    randomise_lora_b(model)
    model.train()
    expected = plain_pair_logps(model, examples)
    expected_gradients = gradients(model, weighted(expected))
    set_attention(find_causal_lm(model), ATTENTION)
    apply_checkpointing(model, "full", mlp_chunk=8)
    actual = pair_logps(model, pack(examples))
    for value, target in ((actual.chosen, expected.chosen), (actual.rejected, expected.rejected)):
        torch.testing.assert_close(value.double(), target, rtol=1e-9, atol=0)
    assert_close(gradients(model, weighted(actual)), expected_gradients, tolerance=1e-6)
    assert not any("vision" in name or "visual" in name for name in expected_gradients)


@pytest.mark.parametrize("kind", COMPOSITES)
def test_every_family_is_proven_from_its_class_before_weights(kind):
    model = tiny_composite(kind)
    assert check_computed(type(model), model.config)


@pytest.mark.parametrize("kind", COMPOSITES)
def test_the_small_copy_keeps_the_text_parts_heads_and_one_layer_of_the_rest(kind):
    config = tiny_composite(kind, num_hidden_layers=4).config
    small = shrink(config)
    assert (config.text_config.num_hidden_layers, small.text_config.num_hidden_layers) == (4, 2)
    assert small.text_config.vocab_size == 512
    assert small.text_config.num_attention_heads == config.text_config.num_attention_heads
    assert small.model_type == config.model_type


class AllLogits(LlavaForConditionalGeneration):
    """A composite that hands `logits_to_keep` on and makes all logits, as Qwen2.5-Omni's thinker does."""

    def forward(self, logits_to_keep=0, **kwargs):
        return super().forward(**kwargs)


def test_a_model_that_makes_all_logits_is_refused():
    """Their sum would be added to every log-prob."""
    config = tiny_composite("llava").config
    model = AllLogits(config).eval()
    set_attention(model, ATTENTION)
    with pytest.raises(UserError, match="AllLogits makes the logits of all tokens"):
        pair_logps(model, pack([make_example(np.random.default_rng(0), prompt=8, answers=[4, 2])]))
