"""Patterns by layer and by head: golden values, outputs and gradients against dense masks, both exchanges' shards."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import align
from align.core.instantiate import instantiate
from align.longseq.attention import attend, attend_plain, prepare
from align.longseq.layout import Layout, PackedPrompt
from align.longseq.sharding import balanced_shards, count_tokens
from align.longseq.ulysses import share_heads
from align.patterns.by_head import ByHead, Run, seen_pairs
from align.patterns.choices import EveryFull, EveryWindow, Hybrid, Shifted, middle_third
from align.patterns.pattern import FULL, Chunked, Strided, Window, pattern_pairs
from tests.longseq.test_merge import HEADS, ROWS, layout_of, states

ROW = Layout((PackedPrompt((0, 6), ((6, 9), (9, 11))),))


def sequences(heads: int, tokens: int, width: int) -> list[torch.Tensor]:
    """Element n, from 1 in row-major order, is sin n in queries, cos n in keys and sin 2n in values."""
    n = torch.arange(1, heads * tokens * width + 1, dtype=torch.float64).view(1, heads, tokens, width)
    return [n.sin(), n.cos(), (2 * n).sin()]


def dense(pattern, tokens: int) -> torch.Tensor:
    """`[T, T]` who sees whom in a row of one sequence."""
    places = torch.arange(tokens)
    return pattern.sees(places[:, None], places[None])


@pytest.mark.parametrize(
    ("pattern", "seventh", "tenth"),
    [
        (Chunked(4), [-0.07947269, 0.20736244], [-0.14277403, 0.23867972]),
        (Chunked(4, shift=2), [0.11955607, 0.37394282], [-0.05418076, 0.53487687]),
        (Strided(2, recent=1, sinks=2), [0.12371824, 0.07921974], [0.08495603, 0.08069925]),
    ],
    ids=str,
)
def test_golden_outputs_behind_a_shared_prompt(pattern, seventh, tenth):
    """A prompt of 6 with answers of 3 and 2: tokens 7 and 10 of the row."""
    output = attend(*sequences(1, 11, 2), layout=prepare(ROW), kernel="cpu", pattern=pattern)[0, 0]
    expected = torch.tensor([seventh, tenth], dtype=torch.float64)
    torch.testing.assert_close(output[[7, 10]], expected, rtol=0, atol=1e-8)


def test_golden_values_of_shifted_groups():
    """Two heads, 8 tokens, groups of 4, the second head shifted by 2; with 2 sinks too."""
    layout = prepare(Layout((PackedPrompt((0, 8), ()),)))
    way = partial(attend, *sequences(2, 8, 2), layout=layout, kernel="cpu")
    output = way(pattern=Shifted(4).at(0, layers=1, heads=2))[0]
    found = {
        (0, 5): [-0.59028146, 0.51915315],
        (1, 0): [0.52908269, -0.99177885],
        (1, 3): [-0.39869391, -0.20612683],
        (1, 7): [0.21741404, 0.24356171],
    }
    for (head, token), expected in found.items():
        assert output[head, token].tolist() == pytest.approx(expected, abs=1e-8)
    assert output.sum().item() == pytest.approx(0.55483580, abs=1e-8)
    assert way(pattern=FULL).sum().item() == pytest.approx(0.85233665, abs=1e-8)
    sinks = way(pattern=Shifted(4, sinks=2).at(0, layers=1, heads=2))[0]
    assert sinks[0, 5].tolist() == pytest.approx([-0.29265499, 0.54796611], abs=1e-8)
    assert sinks[1, 7].tolist() == pytest.approx([0.32588473, -0.03202283], abs=1e-8)


def test_golden_values_of_sinks_windows_and_strides():
    """LM-Infinite's Λ without its distance limit, LongGen's sinks and strided blocks."""
    layout = prepare(Layout((PackedPrompt((0, 12), ()),)))
    output = attend(*sequences(1, 12, 2), layout=layout, kernel="cpu", pattern=Strided(2, recent=1, sinks=2))
    assert output[0, 0, 11].tolist() == pytest.approx([-0.09815749, 0.09291956], abs=1e-8)
    assert dense(Strided(2, recent=1, sinks=2), 12)[11].nonzero().flatten().tolist() == [0, 1, 8, 9, 10, 11]
    seen = dense(Strided(2, recent=1, stride=2), 12)[11].nonzero().flatten().tolist()
    assert seen == [0, 1, 4, 5, 8, 9, 10, 11]
    assert dense(Window(3, sinks=1), 8)[7].nonzero().flatten().tolist() == [0, 5, 6, 7]
    assert dense(Chunked(4, shift=2, sinks=2), 8)[7].nonzero().flatten().tolist() == [0, 1, 6, 7]


BY_HEAD = st.sampled_from(
    [
        Shifted(4),
        Shifted(7, sinks=2),
        Hybrid(Strided(3, recent=1, stride=2), full_layers=[1]),
        EveryWindow(5, sinks=3),
    ]
)


@given(ROWS, HEADS, BY_HEAD, st.integers(1, 3), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_output_and_gradients_by_head_are_the_plain_ones(rows, heads, choice, degree, seed):
    """fp64, whole rows and every rank's tokens (gather), and every rank's heads (ulysses)."""
    layout = layout_of(rows)
    pattern = choice.at(0, layers=3, heads=heads[0])
    if isinstance(pattern, ByHead):
        pattern = ByHead(pattern.spans, heads[0] // heads[1])
    for spans in balanced_shards(layout, degree):
        prepared = prepare(layout, queries=spans)
        leaves, gradient = states(heads, count_tokens(spans), layout.length, seed=seed)
        ways = (partial(attend, kernel="cpu"), attend_plain)
        outputs = [way(*leaves, layout=prepared, pattern=pattern) for way in ways]
        found = [(one.detach(), *torch.autograd.grad(one, leaves, gradient)) for one in outputs]
        for actual, expected in zip(*found, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    whole = prepare(layout)
    (query, key, value), _ = states(heads, layout.length, layout.length, seed=seed)
    expected = attend_plain(query, key, value, layout=whole, pattern=pattern)
    for share in share_heads(*heads, degree):
        for (first, last), (first_kv, last_kv) in share.runs(heads[0] // heads[1]):
            own = slice(share.query[0] + first, share.query[0] + last)
            kv = slice(share.kv[0] + first_kv, share.kv[0] + last_kv)
            part = attend(
                query[:, own],
                *(one[:, kv] for one in (key, value)),
                layout=whole,
                pattern=pattern,
                heads=(own.start, own.stop),
                kernel="cpu",
            )
            torch.testing.assert_close(part, expected[:, own], rtol=1e-12, atol=1e-12)


def test_runs_of_heads():
    """Nine heads on three KV heads, cut at 4, whole and as the second of two ranks has them."""
    plain, shifted = Chunked(4), Chunked(4, shift=2)
    by_head = ByHead((((0, 4), plain), ((4, 9), shifted)), queries_per_kv=3)
    assert by_head.runs((0, 9)) == [
        Run((0, 3), (0, 1), plain),
        Run((3, 4), (1, 2), plain),
        Run((4, 6), (1, 2), shifted),
        Run((6, 9), (2, 3), shifted),
    ]
    assert by_head.runs((5, 9)) == [Run((0, 1), (0, 1), shifted), Run((1, 4), (1, 2), shifted)]
    pairs = [pattern_pairs(one, (0, 11)) for one in (plain, shifted)]
    assert seen_pairs(by_head, (0, 11)) == (4 * pairs[0] + 5 * pairs[1]) / 9


def test_layers_of_a_hybrid():
    """The middle third of models of 28 to 80 layers, as LongGen has it; or numbers of one's own."""
    thirds = {28: (10, 18), 30: (10, 19), 32: (10, 20), 36: (12, 23), 80: (26, 52)}
    assert all((*middle_third(n)[:1], middle_third(n)[-1]) == ends for n, ends in thirds.items())
    hybrid = Hybrid(Window(8), full_layers=[0, 5])
    assert [hybrid.at(layer, layers=6, heads=2) == FULL for layer in range(6)] == [True, *[False] * 4, True]


MIDDLE = "middle_third"
GROUP = {
    "own": None,
    "full": EveryFull(),
    "window": EveryWindow(4096),
    "sink_window": EveryWindow(4096, sinks=4),
    "s2": Shifted(2048, evaluate="full"),
    "hybrid": Hybrid(Window(2048, sinks=64), full_layers=MIDDLE),
    "hybrid_blocks": Hybrid(Strided(256, recent=1, stride=16), full_layers=MIDDLE),
}


def test_what_the_group_gives():
    """Each file of `attention`, with nothing overridden, and no file more."""
    files = (Path(align.__file__).parents[1] / "hydra_conf" / "attention").glob("*.yaml")
    keys = {path.stem: yaml.safe_load(path.read_text()) for path in files}
    found = {
        name: None if one is None else instantiate(one, allow=["align"], where=name, kind="attention")
        for name, one in keys.items()
    }
    assert found == GROUP
