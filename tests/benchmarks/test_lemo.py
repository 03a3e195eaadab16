"""What is counted of a row's activations, on a model of two layers, and LeMo's bound from numbers one can follow."""

from __future__ import annotations

import pytest
import torch

from align.longseq import ATTENTION
from align.longseq.checkpointing import apply_checkpointing
from benchmarks.lemo import at_least, kept_of_a_layer, measure, model_of, plain, shared

LAYERS, WIDTH, TOKENS = 2, 32, 96


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(8, 250, (1, TOKENS), generator=torch.Generator().manual_seed(0))


def test_the_bound_counts_layers_tokens_and_mlps():
    """Of 32 layers 16 keep all tokens, 16 a half: 24 · (10 + 0.2 · 20); with all tokens left 32 · 14."""
    assert at_least(10, 20, 0.5, layers=32) == 24 * 14
    assert at_least(10, 20, 1.0, layers=32) == 32 * 14
    assert at_least(10, 20, 0.5, layers=16) == 12 * 14


def test_layers_and_head_are_what_the_plain_forward_keeps(ids):
    """Beside its layers it keeps the last norm's values and some tokens × vocabulary logits of 250, in fp32."""
    found = measure(model_of(LAYERS, WIDTH), ids, plain)
    layers = LAYERS * sum(kept_of_a_layer(model_of(LAYERS, WIDTH), ids))
    logits = 4 * TOKENS * 250
    assert layers + logits < found["kept"] < layers + 3 * logits + 8 * 4 * TOKENS * WIDTH
    assert found["peak"] > found["kept"]


def test_both_forwards_have_one_loss_and_checkpoints_are_the_layers_inputs(ids):
    expected = measure(model_of(LAYERS, WIDTH), ids, plain)
    kept = []
    for layers in (LAYERS, 4 * LAYERS):
        model = model_of(layers, WIDTH)
        model.set_attn_implementation(ATTENTION)
        apply_checkpointing(model, "full")
        found = measure(model, ids, shared)
        kept.append(found["kept"])
        if layers == LAYERS:
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert found["kept"] < expected["kept"]
    # A layer adds its input in fp32 and the state of torch's generator, which a second forward starts from.
    state = torch.get_rng_state().nbytes
    assert (kept[1] - kept[0]) / (3 * LAYERS) == pytest.approx(4 * TOKENS * WIDTH + state, abs=64)
