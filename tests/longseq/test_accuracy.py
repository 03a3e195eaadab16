"""Accuracy at length: bf16 weights and activations with fp32 log-probs and sums, on an answer of 10,000 tokens."""

from __future__ import annotations

import numpy as np
import torch

from align.longseq import ATTENTION, pack, pair_logps
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
        assert logps.chosen.dtype == torch.float32
        sums[dtype] = torch.cat([logps.chosen, logps.rejected[0]])
    exact, lowered = sums[torch.float32], sums[torch.bfloat16]
    assert exact[0] < -ANSWER  # far from the numbers that rounding could reach
    assert ((lowered - exact).abs() / exact.abs()).max() <= 1e-2
    running = torch.zeros((), dtype=torch.bfloat16)
    for term in (exact[0] / ANSWER).to(torch.bfloat16).expand(ANSWER):
        running = running + term
    assert (running - exact[0]).abs() / exact[0].abs() > 0.5  # what summing in bf16 would give
