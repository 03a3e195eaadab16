"""One uniform number picks one token of the nucleus, as the library's filters define it."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from align.core.errors import UserError
from align.generation.generators import Message, Request, Sampling
from align.generation.sampling import HEAD, FiniteLogits, RowSampler, draw_nucleus
from align.generation.stage import run_stage
from tests.generation.helpers import local_generator, workspace
from tests.tiny import tiny_model


def draw(logits, uniforms, **settings):
    rows = logits.expand(len(uniforms), -1)
    return draw_nucleus(rows, torch.tensor(uniforms, dtype=torch.float64), **settings).tolist()


def test_by_hand():
    """p = (.05, .5, .15, .3), top_p .7: the nucleus is tokens 1 and 3 with .5/.8 = .625 and .375.

    At temperature ½ p² gives (.0025, .25, .0225, .09)/.365: .685 < .7, so again tokens 1 and 3, now with
    .25/.34 = .735.
    """
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    uniforms = [0.0, 0.62, 0.63, 0.73, 0.74, 1 - 2**-53]
    assert draw(logits, uniforms, temperature=1.0, top_p=0.7) == [1, 1, 3, 3, 3, 3]
    assert draw(logits, uniforms, temperature=0.5, top_p=0.7) == [1, 1, 1, 1, 3, 3]
    assert draw(logits, uniforms, temperature=1.0, top_p=0.4) == [1] * 6


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.95), (1.3, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("size", [50, 3 * HEAD])
def test_frequencies_are_the_librarys_probabilities(size, temperature, top_p):
    """A grid of n uniform numbers hits a token of probability p between n·p − 1 and n·p + 1 times."""
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(0)).double() * 2
    scores = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits))
    count = 2000
    grid = ((torch.arange(count) + 0.5) / count).tolist()
    tokens = torch.tensor(draw(logits, grid, temperature=temperature, top_p=top_p))
    frequencies = torch.bincount(tokens, minlength=size) / count
    assert torch.allclose(frequencies.double(), scores.softmax(-1)[0], atol=1.01 / count)


def test_the_sampler_leaves_one_token_and_depends_on_the_rows_seed_alone():
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    together = RowSampler([5, 6, 7], temperature=0.7, top_p=0.95)
    alone = RowSampler([6], temperature=0.7, top_p=0.95)
    for _ in range(20):
        scores = together(None, logits)
        assert (scores == 0).sum(-1).tolist() == [1, 1, 1]
        assert scores[1].argmax() == alone(None, logits[1:2])[0].argmax()


def test_temperature_0_takes_the_likeliest():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert RowSampler([1], temperature=0, top_p=0.9)(None, logits) is logits


def test_the_smallest_temperature_takes_the_likeliest():
    """2 / 1e-310 is beyond all numbers."""
    logits = torch.tensor([[0.0, 2.0, 1.0, -torch.inf]])
    assert draw(logits, [0.0, 0.999], temperature=1e-310, top_p=0.9) == [1, 1]


@pytest.mark.parametrize(
    "changes", [{"temperature": math.nan}, {"temperature": -1.0}, {"top_p": math.nan}, {"top_p": 0.0}]
)
def test_what_nothing_can_be_drawn_with_is_refused(changes):
    with pytest.raises(UserError, match=r"a temperature of 0 or more and a top_p in \(0, 1\]"):
        Sampling(**({"temperature": 1.0, "top_p": 1.0, "min_new_tokens": 1, "max_new_tokens": 1} | changes))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_row_without_a_likeliest_token_ends_the_run(number):
    logits = torch.tensor([[0.0, -torch.inf], [0.0, number]])
    finite = FiniteLogits(["a", "b"], name="m")
    assert finite(None, logits[:1].expand(2, -1)).shape == (2, 2)
    with pytest.raises(UserError, match=r"b: the model m gives no number \((nan|inf)\) for the next token"):
        finite(None, logits)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_model_that_has_come_apart_writes_nothing(temperature, tmp_path):
    """Greedily it wrote token 0, and drawing from it ended in a traceback."""

    def broken():
        model = tiny_model()
        torch.nn.init.constant_(model.lm_head.weight, torch.nan)
        return model

    model = local_generator()
    model._load = broken
    request = Request("q", (Message("user", "w5"),), Sampling(temperature, 0.9, 1, 4), 1)
    with pytest.raises(UserError, match=r"q: the model tiny gives no number \(nan\).*model\.dtype=float32"):
        run_stage("s", [request], workspace(tmp_path, model))
