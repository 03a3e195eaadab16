"""The distance limit of first tokens: golden values, the library's rotary embeddings, and what it is refused for."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from align.core.errors import UserError
from align.longseq.support import check_config
from align.models import distance_limit
from align.models.distance_limit import check_limit, note_rotary
from align.models.patterned_attention import PATTERNED, patterned_attention
from align.patterns.choices import EveryWindow
from align.patterns.layers import Chosen, keep_patterns
from tests.patterns.test_choices import sequences
from tests.tiny import tiny_model


def with_limit(model, *, window: int, sinks: int, limit: int | None):
    patterns = EveryWindow(window, sinks, limit)
    keys = {"_target_": "align.patterns.choices.EveryWindow", "window": window, "sinks": sinks}
    keep_patterns(model.config, Chosen(patterns, keys | {"limit": limit, "evaluate": "same"}))
    model.set_attn_implementation(PATTERNED)
    note_rotary(model)
    return model


class Turning(nn.Module):
    """A rotary embedding of one frequency, 1."""

    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", torch.ones(1, dtype=torch.float64))

    def forward(self, states, positions):
        angles = positions[..., None].double() * torch.ones(2, dtype=torch.float64)
        return angles.cos(), angles.sin()


class Still(Turning):
    """One that turns nothing."""

    def forward(self, states, positions):
        return torch.ones(*positions.shape, states.shape[3]), torch.zeros(*positions.shape, states.shape[3])


def test_golden_values():
    """Six tokens, a window of 3, one first token, both read at 3 positions at most; and at their true distance."""
    model = with_limit(tiny_model(), window=3, sinks=1, limit=3)
    layer, rotary = model.model.layers[0].self_attn, Turning()
    distance_limit._ROTARY[layer] = rotary
    apply = getattr(sys.modules[type(layer).__module__], distance_limit.APPLY)
    query, key, value = sequences(1, 6, 2)
    query, key = apply(query, key, *rotary(query, torch.arange(6)[None]))
    output, _ = patterned_attention(layer, query, key, value, None)
    expected = {
        2: [0.13290329, 0.07134856],
        4: [0.08690841, -0.17906582],
        5: [0.23447160, -0.04733149],
    }
    for token, numbers in expected.items():
        assert output[0, token, 0].tolist() == pytest.approx(numbers, abs=1e-8)
    layer = with_limit(tiny_model(), window=3, sinks=1, limit=None).model.layers[0].self_attn
    output, _ = patterned_attention(layer, query, key, value, None)
    assert output[0, 4, 0].tolist() == pytest.approx([0.09060202, -0.18166062], abs=1e-8)
    assert output[0, 5, 0].tolist() == pytest.approx([0.13443437, 0.05784160], abs=1e-8)
    layer = with_limit(tiny_model(), window=3, sinks=0, limit=None).model.layers[0].self_attn
    output, _ = patterned_attention(layer, query, key, value, None)
    assert output[0, 4, 0].tolist() == pytest.approx([-0.06161826, -0.07472432], abs=1e-8)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "glm"])
def test_a_model_reads_first_tokens_at_the_limit(kind):
    """A row moved by hand to where its first token is `limit` away: one layer says the same of it, cached or not."""
    sizes = {"num_hidden_layers": 1, "initializer_range": 0.3}
    model = with_limit(tiny_model(kind, **sizes), window=4, sinks=1, limit=6)
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        whole = model(ids).logits
        cache, steps = None, []
        for at in range(ids.shape[1]):
            output = model(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache, steps = output.past_key_values, [*steps, output.logits]
        torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4)
        # The last token sees the first one and the last four: in one layer a row of these at such places is the same.
        own = ids[:, [0, 16, 17, 18, 19]]
        near = with_limit(tiny_model(kind, **sizes), window=5, sinks=0, limit=None)
        near.load_state_dict(model.state_dict())
        placed = near(own, position_ids=torch.tensor([[0, 3, 4, 5, 6]])).logits
    torch.testing.assert_close(placed[:, -1], whole[:, -1], rtol=1e-4, atol=1e-4)


def test_refusals():
    """No first tokens, no rotary embedding, the forward that trains."""
    with pytest.raises(UserError, match=r"attention\.limit is how far away first tokens are read"):
        EveryWindow(4, limit=4).check()
    model = with_limit(tiny_model(), window=4, sinks=1, limit=4)
    check_limit(model.config, type(model))
    with pytest.raises(UserError, match=r"attention\.limit: llama has no rotary embedding"):
        check_limit(model.config, None)
    with pytest.raises(UserError, match=r"attention\.limit holds where a model answers"):
        check_config(model.config)
    model.model.rotary_emb = Still()
    with pytest.raises(UserError, match="rotary embedding of LlamaForCausalLM cannot be turned on"):
        note_rotary(model)
