"""Composites of text and images on rows of text: the shared prefix against the composite's own forward, padded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from align.adapters.adapter import add_adapter
from align.adapters.lora import Lora
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.probe import check_computed
from align.models.small import few_layers
from align.models.structure import find_causal_lm
from align.models.text_part import set_attention
from losses.types import PairLogps
from tests.distributed import run_distributed
from tests.longseq.plain import assert_close, gradients, make_example, plain_pair_logps, randomise_lora_b
from tests.longseq.sharded import Case
from tests.longseq.wrapped import ROWS, TOLERANCES, WRAPPERS, worker
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
    model = add_adapter(tiny_composite(kind).double(), Lora(r=4) if lora else None)
    randomise_lora_b(model)
    model.train()
    expected = plain_pair_logps(model, examples)
    expected_gradients = gradients(model, weighted(expected))
    set_attention(find_causal_lm(model), ATTENTION)
    # Gemma-4's layers take more than hidden states by position, which tiles refuse.
    apply_checkpointing(model, "full", mlp_chunk=None if kind == "gemma4" else 8)
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
def test_the_small_copy_keeps_the_text_parts_heads_and_few_layers_of_the_rest(kind):
    config = tiny_composite(kind).config
    config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers = 4, 3
    types = getattr(config.text_config, "layer_types", None)
    if types:
        config.text_config.layer_types = [types[0], types[0], types[0], types[-1]]
    small = few_layers(config, vocabulary=512)
    assert config.text_config.num_hidden_layers == 4 and small.text_config.num_hidden_layers <= 3
    if types:
        assert set(small.text_config.layer_types) == {types[0], types[-1]}
    assert small.vision_config.num_hidden_layers <= 2
    assert small.text_config.vocab_size == 512
    assert small.text_config.num_attention_heads == config.text_config.num_attention_heads
    assert small.model_type == config.model_type


class AllLogits(LlavaForConditionalGeneration):
    """A composite that hands `logits_to_keep` on and makes all logits, as Qwen2.5-Omni's thinker does."""

    def forward(self, logits_to_keep=0, **kwargs):
        return super().forward(**kwargs)


def test_a_model_that_makes_all_logits_is_scored_like_any_other():
    """Nothing of the logits that it makes unasked is added to a log-prob."""
    model = AllLogits(tiny_composite("llava").config).double().eval()
    example = make_example(np.random.default_rng(0), prompt=8, answers=[4, 2])
    expected = plain_pair_logps(model, [example])
    set_attention(model, ATTENTION)
    torch.testing.assert_close(pair_logps(model, pack([example])).chosen, expected.chosen, rtol=1e-6, atol=0)


@dataclass(frozen=True)
class Composite(Case):
    """A case of the wrappers' table whose model has a vision tower beside its text part."""

    kind: str = "mistral3"

    def build(self, attention: str) -> torch.nn.Module:
        model = tiny_composite(self.kind)
        set_attention(model, attention)
        torch.manual_seed(1)
        model = add_adapter(model, Lora(r=4) if self.lora else None)
        randomise_lora_b(model)
        return model.train()


TABLE = {
    "full": Composite(rows=ROWS, tokens_per_row=60, checkpointing="full"),
    "LoRA": Composite(rows=ROWS, tokens_per_row=60, lora=True, kind="qwen2_5_vl"),
}


def assert_table(wrappers: list[str]) -> None:
    for found in run_distributed(worker, 2, wrappers, TABLE, 2, timeout=300):
        assert len(found) == 2 * len(wrappers) * len(TABLE)
        for cell, errors in found.items():
            for what, error in errors.items():
                assert error <= TOLERANCES[what], f"{cell}: {what} off by {error:.2e}"


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_frozen_parts_in_a_wrapper_under_sequence_parallelism(wrapper):
    """Three clipped steps at degree two, by either exchange, end where one process's padded rows end."""
    assert_table([wrapper])


@pytest.mark.slow
def test_frozen_parts_in_every_wrapper():
    pytest.importorskip("deepspeed")
    assert_table(list(WRAPPERS))
