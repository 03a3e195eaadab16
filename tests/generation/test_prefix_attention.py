"""Rows that go on from common prefixes attend as if each had its own copy of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from align.core.errors import UserError
from align.generation import prefix_attention as module
from align.generation.prefix_attention import Prefix, PrefixedBatch, prefix_attention
from tests.tiny import tiny_model

HEADS, KV_HEADS, WIDTH = 6, 2, 8


class Layer(torch.nn.Module):
    layer_idx = 1


def states(*shape):
    return torch.randn(*shape, WIDTH, dtype=torch.float64)


def drawn(prefixes, rows, own):
    """Prefixes of these lengths for so many rows each; the first layer's are not to be used."""
    torch.manual_seed(sum(prefixes) + own)
    found, row = [], 0
    for tokens, count in zip(prefixes, rows, strict=True):
        right = (states(1, KV_HEADS, tokens), states(1, KV_HEADS, tokens))
        wrong = (states(1, KV_HEADS, tokens), states(1, KV_HEADS, tokens))
        found.append(Prefix(slice(row, row + count), [wrong, right]))
        row += count
    return found, states(row, KV_HEADS, own), states(row, KV_HEADS, own)


def plain(query, key, value, prefixes, visible):
    """Each row with its own prefix before it, one masked call of torch's function."""
    outputs = []
    for prefix in prefixes:
        keys, values = prefix.layers[1]
        for row in range(*prefix.rows.indices(len(query))):
            whole = (torch.cat([a, b[row : row + 1]], 2) for a, b in ((keys, key), (values, value)))
            seen = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool)
            mask = torch.cat([seen, visible[row, 0]], 1)
            outputs.append(
                scaled_dot_product_attention(
                    query[row : row + 1], *whole, attn_mask=mask, scale=0.3, enable_gqa=True
                )
            )
    return torch.cat(outputs).transpose(1, 2)


@pytest.mark.parametrize("kernel", ["cpu", None])
@pytest.mark.parametrize(("queries", "own"), [(1, 9), (7, 7), (4, 9)])
def test_attention_is_that_over_copies(kernel, queries, own, monkeypatch):
    """Two prefixes, three rows and one, padding before what follows; some queries see only the prefix."""
    monkeypatch.setattr(module, "QUERIES", 3)
    monkeypatch.setattr(module, "sdpa_kernel", lambda query, value: kernel)
    prefixes, key, value = drawn((11, 5), (3, 1), own)
    query = states(4, HEADS, queries)
    visible = torch.ones(queries, own, dtype=torch.bool).tril(own - queries).repeat(4, 1, 1, 1)
    visible[1, :, :, : own - 1] = False
    mask = torch.cat([torch.zeros(4, 1, queries, 11, dtype=torch.bool), visible], 3)
    batch = PrefixedBatch(prefixes)
    token = module._CURRENT.set(batch)
    try:
        found, _ = prefix_attention(Layer(), query, key, value, mask, scaling=0.3)
        unmasked, _ = prefix_attention(Layer(), query, key, value, None, scaling=0.3)
    finally:
        module._CURRENT.reset(token)
    torch.testing.assert_close(found, plain(query, key, value, prefixes, visible), rtol=0, atol=1e-12)
    causal = torch.ones_like(visible).tril(own - queries)
    torch.testing.assert_close(unmasked, plain(query, key, value, prefixes, causal), rtol=0, atol=1e-12)


def test_a_model_that_attends_by_itself_is_refused():
    """It would have answered without the prefix; its own attention is in place again afterwards."""
    model = tiny_model()
    before = model.config._attn_implementation
    empty = torch.zeros(1, KV_HEADS, 3, WIDTH)
    with (
        pytest.raises(UserError, match="code of its own in 2 of its 2 layers"),
        PrefixedBatch([Prefix(slice(0, 1), [(empty, empty)] * 2)]).attended_by(model),
    ):
        assert model.config._attn_implementation == module.ATTENTION
    assert model.config._attn_implementation == before
