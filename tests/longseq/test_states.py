"""Layers that keep a state: the prompt's state is computed once, and every answer goes on from it."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from align.core.errors import UserError
from align.data.examples import TokenizedExample
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import CHECKPOINTING, apply_checkpointing
from align.longseq.states import prepare_states, state_mixers
from align.longseq.support import check_degree, check_supported
from losses import logo_loss
from losses.types import PairLogps
from tests.longseq.plain import assert_close, make_example, plain_pair_logps
from tests.longseq.stateful import KINDS, LATENT, Float64, in_float64, state_model

SHAPES = ((21, (7, 3, 1)), (9, (2, 4)), (1, (3,)))


def examples(shapes=SHAPES) -> list[TokenizedExample]:
    """Prompts of unlike length, each with some answers, at positions that jump within the prompt."""
    rng = np.random.default_rng(0)
    return [make_example(rng, prompt=prompt, answers=answers, jump=9) for prompt, answers in shapes]


def loss_of(logps: PairLogps) -> torch.Tensor:
    """LOGO's, whose gradient reaches every answer."""
    return logo_loss(logps, beta=2.5, gamma=0.25, sft_weight=0.1).loss.mean()


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every trainable parameter that the loss depends on; an expert that no token chose has none."""
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    values = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: value
        for name, value in zip(named, values, strict=True)
        if value is not None and value.norm() > 0
    }


def shared(model: torch.nn.Module) -> torch.nn.Module:
    """A copy that attends over shared prefixes."""
    model = copy.deepcopy(model)
    model.set_attn_implementation(ATTENTION)
    return model


def assert_parity(plain, other, rows, *, tokens_per_row=None, tolerance=1e-9):
    """Log-probs and every gradient of `other` on a shared prefix against padded rows through `plain`."""
    expected = plain_pair_logps(plain, rows)
    actual = pair_logps(other, pack(rows, tokens_per_row=tokens_per_row), chunk_size=8)
    torch.testing.assert_close(actual.chosen, expected.chosen, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(actual.rejected, expected.rejected, rtol=tolerance, atol=tolerance)
    wanted = gradients(plain, loss_of(expected))
    assert len(wanted) > 10
    assert_close(gradients(other, loss_of(actual)), wanted, tolerance=tolerance)


@pytest.mark.parametrize("tokens_per_row", [None, 1], ids=["one row", "a row each"])
@pytest.mark.parametrize("kind", [*KINDS, *LATENT])
def test_every_architecture(kind, tokens_per_row):
    """Prompts with 3, 2 and 1 answers, some of one token, and a prompt of one token."""
    model = in_float64(state_model(kind)).train()
    with Float64():
        assert_parity(model, shared(model), examples(), tokens_per_row=tokens_per_row)


@pytest.mark.parametrize("kind", ["qwen3_next", "nemotron_h", "jamba", "minimax", "lfm2"])
def test_in_the_librarys_own_precision(kind):
    """As the library computes: its scans in float32, whose chunks lie elsewhere in padded rows."""
    model = in_float64(state_model(kind)).train()
    assert_parity(model, shared(model), examples(), tolerance=1e-4)
