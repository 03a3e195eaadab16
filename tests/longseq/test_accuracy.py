"""Accuracy at length: bf16 weights and activations on an answer of 10,000 tokens, and sums of 131,072 log-probs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.logps import sum_by_index
from tests.longseq.plain import make_example
from tests.tiny import tiny_model

ANSWER = 10_000


def test_bf16_agrees_with_fp32_on_a_long_answer():
    """The sums over 10,000 tokens within 1e-2 of each other, relative.

    bf16 has 8 bits of mantissa. A token's log-prob is off by about 2⁻⁸ of the logits' size, either way, so the
    error of a sum grows like √n while the sum grows like n, as long as nothing is summed in bf16: a running sum
    in bf16 stops growing once it is 2⁸ times a term.
    """
    rng = np.random.default_rng(0)
    batch = pack([make_example(rng, prompt=64, answers=[ANSWER, 200])])
    sums = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model(max_position_embeddings=16384).to(dtype)
        model.set_attn_implementation(ATTENTION)
        with torch.no_grad():
            logps = pair_logps(model, batch)
        assert logps.chosen.dtype == torch.float64
        sums[dtype] = torch.cat([logps.chosen, logps.rejected[0]])
    exact, lowered = sums[torch.float32], sums[torch.bfloat16]
    assert exact[0] < -ANSWER  # far from the numbers that rounding could reach
    assert ((lowered - exact).abs() / exact.abs()).max() <= 1e-2
    running = torch.zeros((), dtype=torch.bfloat16)
    for term in (exact[0] / ANSWER).to(torch.bfloat16).expand(ANSWER):
        running = running + term
    assert (running - exact[0]).abs() / exact[0].abs() > 0.5  # what summing in bf16 would give


def test_a_sum_of_131072_log_probs_loses_nothing():
    """Of fp32 token values with a mean of −3 nats, against Python's exact sum; one by one in fp32 half a nat is lost.

    Two answers after each other, the second shorter, and a slot without tokens between them.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = -6 * torch.rand(131_072 + 1_000, generator=generator)
    index = torch.cat([torch.zeros(131_072, dtype=torch.long), torch.full((1_000,), 2)])
    sums = sum_by_index(tokens, index, 4)
    exact = [math.fsum(tokens[:131_072].tolist()), 0.0, math.fsum(tokens[131_072:].tolist()), 0.0]
    assert sums.tolist() == pytest.approx(exact, rel=1e-15)
    one_by_one = torch.zeros(4).index_add(0, index, tokens)
    assert abs(one_by_one[0].item() - exact[0]) > 0.01  # about 0.1 to 0.5 nats


def test_gradients_of_sums_are_fp32_and_their_own():
    """d(Σ g_i · sum_i) / d value = g of the value's own sum."""
    values = torch.randn(5, requires_grad=True)
    sums = sum_by_index(values, torch.tensor([0, 0, 1, 3, 3]), 4)
    (gradient,) = torch.autograd.grad(sums @ torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=sums.dtype), values)
    assert gradient.dtype == torch.float32
    assert gradient.tolist() == [1.0, 1.0, 2.0, 4.0, 4.0]


def test_scored_tokens_ascend_by_answer():
    """What `sum_by_index` needs of a packed row."""
    rng = np.random.default_rng(0)
    row = pack([make_example(rng, prompt=9, answers=[4, 3]), make_example(rng, prompt=5, answers=[2])]).rows[
        0
    ]
    assert (row.answer.diff() >= 0).all()
    assert (row.context_prompt.diff() >= 0).all()
