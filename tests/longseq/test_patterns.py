"""Attention patterns and sinks: calls without masks against `sees`, and against plain attention with masks."""

from __future__ import annotations

from functools import partial
from itertools import groupby

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from align.core.errors import UserError
from align.longseq.attention import attend, attend_plain, prepare
from align.longseq.kernels import CAPPED, kernel_named, register_kernel
from align.longseq.layer_pattern import layer_pattern
from align.longseq.merge import MergedAttention, run_parts
from align.longseq.parts import REVERSED, Part, flatten, parts_of, unflatten
from align.longseq.settings import SOFTCAP
from align.longseq.sharding import balanced_shards, count_tokens
from align.longseq.ulysses import share_heads
from align.patterns.by_head import seen_pairs
from align.patterns.pattern import FULL, Block, Chunked, Full, Strided, Window
from tests.longseq.test_merge import HEADS, ROWS, Largest, layout_of, states

SINKS = st.integers(0, 12)
PATTERNS = st.one_of(
    st.just(FULL),
    st.builds(Window, st.integers(1, 45), sinks=SINKS),
    st.integers(1, 45).flatmap(
        lambda size: st.builds(Chunked, st.just(size), shift=st.integers(0, size - 1), sinks=SINKS)
    ),
    st.builds(Strided, st.integers(1, 12), recent=st.integers(0, 3), sinks=SINKS, stride=st.integers(0, 4)),
)


def seen_by_calls(calls, queries: int, keys: int) -> torch.Tensor:
    """`[queries, keys]` how often each pair is computed."""
    seen = torch.zeros(queries, keys, dtype=torch.long)
    for call in calls:
        for one in repeats(call):
            rows, columns = slice(*one.queries), slice(*one.keys)
            block = torch.ones_like(seen[rows, columns])
            if one.squares:
                assert block.shape == (one.squares[0],) * 2
                block = block.triu() if one.mirrored else block.tril()
            seen[rows, columns] += block
    return seen


def repeats(call) -> list[Part]:
    """The parts of a call, one by one."""
    part, steps = call.part, [i * call.step for i in range(call.count)]
    spans = [tuple(tuple(end + step for end in span) for span in (part.queries, part.keys)) for step in steps]
    return [Part(*both, part.squares, part.mirrored) for both in spans]


def seen_by_pattern(layout, pattern) -> torch.Tensor:
    """`[T, T]` what each token of the row sees, token by token, from the pattern's `sees` alone."""
    seen = torch.zeros(layout.length, layout.length, dtype=torch.long)
    for packed in layout.prompts:
        prompt = list(range(*packed.prompt))
        for branch in (prompt, *([*prompt, *range(*answer)] for answer in packed.answers)):
            for query, row in enumerate(branch):
                for key, column in enumerate(branch):
                    seen[row, column] = int(bool(pattern.sees(query, key)))
    return seen


@given(ROWS, PATTERNS, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_parts_hold_every_pair_once(rows, pattern, degree):
    """Of whole rows and of shards; squares come first and hold every query once; numbers of pairs are right."""
    layout = layout_of(rows)
    expected = seen_by_pattern(layout, pattern)
    for spans in balanced_shards(layout, degree):
        parts = parts_of(layout.prompts, spans, pattern)
        own = [token for start, stop in spans for token in range(start, stop)]
        calls = [call for part in parts for call in part.each()]
        assert torch.equal(seen_by_calls(calls, len(own), layout.length), expected[own])
        assert unflatten(flatten(parts)) == list(parts)
        squares = [part for part in parts if part.squares and not part.mirrored]
        assert parts[: len(squares)] == tuple(squares)
        assert sum(stop - start for start, stop in (part.queries for part in squares)) == len(own)
    for packed in layout.prompts:
        size = packed.prompt[1] - packed.prompt[0]
        assert seen_pairs(pattern, (0, size)) == expected[slice(*packed.prompt)].sum()
        for start, stop in packed.answers:
            assert seen_pairs(pattern, (size, size + stop - start)) == expected[start:stop].sum()


@given(ROWS, HEADS, PATTERNS, st.booleans(), st.integers(1, 3), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_output_and_gradients_are_the_plain_ones(rows, heads, pattern, sinks, degree, seed):
    """fp64; with sinks their gradient too; whole rows and every rank's shard."""
    layout = layout_of(rows)
    for spans in balanced_shards(layout, degree):
        prepared = prepare(layout, queries=spans)
        leaves, gradient = states(heads, count_tokens(spans), layout.length, seed=seed)
        if sinks:
            leaves.append(torch.randn(heads[0], dtype=torch.float64, requires_grad=True))
        results = []
        for way in (partial(attend, kernel="cpu"), attend_plain):
            output = way(*leaves[:3], layout=prepared, pattern=pattern, sinks=leaves[3] if sinks else None)
            results.append((output.detach(), *torch.autograd.grad(output, leaves, gradient)))
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_sinks_of_some_heads():
    """Under the all-to-all exchange a rank has some heads, whose numbers pick their sinks."""
    layout = layout_of([(9, [4, 3])])
    (query, key, value), _ = states((9, 3), layout.length, layout.length)
    sinks = torch.randn(9, dtype=torch.float64)
    way = partial(attend, layout=prepare(layout), kernel="cpu", pattern=Window(4), sinks=sinks)
    whole = way(query, key, value)
    for share in share_heads(9, 3, 2):
        for (first, last), (first_kv, last_kv) in share.runs(3):
            start, kv = share.query[0], share.kv[0]
            own = slice(start + first, start + last)
            part = way(
                query[:, own],
                *(states[:, kv + first_kv : kv + last_kv] for states in (key, value)),
                heads=(own.start, own.stop),
            )
            torch.testing.assert_close(part, whole[:, own], rtol=1e-12, atol=1e-14)


def test_blocks():
    """What the module's text says, and a window that begins before the first token."""
    assert list(Window(4).blocks((6, 11))) == [
        Block((6, 9), fading=(3, 6)),
        Block((9, 11), fading=(6, 9)),
    ]
    assert list(Window(4).blocks((0, 4))) == [Block((0, 3)), Block((3, 4), fading=(0, 3))]
    assert list(Window(4).blocks((2, 4))) == [Block((2, 4), fading=(0, 2), intact=1)]
    assert list(Window(4, sinks=2).blocks((3, 6))) == [Block((3, 6), ((0, 2),), (2, 3), intact=2)]
    assert list(Chunked(4).blocks((6, 13))) == [Block((6, 8), ((4, 6),)), Block((8, 12)), Block((12, 13))]
    assert seen_pairs(FULL, (10, 14)) == 50 and seen_pairs(Window(3), (10, 14)) == 12


def test_a_window_is_two_calls_for_kernels_that_take_several_squares():
    """All causal squares are one part and all mirrored ones another, until what is reversed would grow too large."""
    layout = layout_of([(12, [])])
    assert parts_of(layout.prompts, ((0, 12),), Window(4)) == (
        Part((0, 12), (0, 12), (3, 3, 3, 3)),
        Part((3, 12), (0, 9), (3, 3, 3), mirrored=True),
    )
    causal, *mirrored = parts_of(layout_of([(99_900, [])]).prompts, ((0, 99_900),), Window(1000))
    assert len(causal.squares) == 100 and len(mirrored) == 7
    assert all(part.mirrored and part.queries[1] - part.queries[0] <= REVERSED for part in mirrored)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 9), st.booleans())
@example([40] * 3 + [7], 3, True)
@settings(max_examples=60, deadline=None)
def test_halved_squares_hold_the_same_pairs_once(sizes, least, mirrored):
    """Down to the least size, whatever it is; squares come before the rectangles of their queries, and equal squares
    that follow each other are a batch."""
    total = sum(sizes)
    part = Part((3, 3 + total), (5, 5 + total), tuple(sizes), mirrored)
    calls = list(part.each(range(least + 1, 100)))
    whole, halves = (seen_by_calls(each, 210, 210) for each in (part.each(), calls))
    assert torch.equal(whole, halves)
    covered = set()
    for call in calls:
        for piece in repeats(call):
            queries = set(range(*piece.queries))
            assert (piece.squares and not queries & covered) or (not piece.squares and queries <= covered)
            assert not piece.squares or piece.squares[0] <= least
            covered |= queries
    assert len(list(part.each())) == len(list(groupby(sizes)))


class Batches:
    """A kernel of which squares of these sizes are halved, and which notes the largest batch."""

    varlen = False

    def __init__(self, kernel, halved) -> None:
        self.kernel, self.halved, self.largest = kernel, halved, 0

    def forward(self, *arguments):
        return self.called(self.kernel.forward, arguments)

    def backward(self, *arguments):
        return self.called(self.kernel.backward, arguments)

    def called(self, run, arguments):
        self.largest = max(self.largest, len(arguments[0]))
        return self.run(run, *arguments)

    def run(self, run, *arguments):
        return run(*arguments)


class OneByOne(Batches):
    """Its batches in a loop."""

    def run(self, run, *arguments):
        *batched, squares, scaling = arguments
        size = len(batched[0])
        one_by_one = [run(*(one[i : i + 1] for one in batched), squares, scaling) for i in range(size)]
        return tuple(torch.cat(each) for each in zip(*one_by_one, strict=True))


@pytest.mark.parametrize("name", ["cpu", f"{CAPPED}{SOFTCAP}3.0"])
@pytest.mark.parametrize("halved", [range(0), range(6, 100)])
def test_a_batch_of_blocks_is_the_blocks_one_by_one(name, halved):
    """Output and gradients: causal and mirrored squares of a window, the last one shorter."""
    layout = layout_of([(70, [9, 5]), (33, [])])
    calls = flatten(parts_of(layout.prompts, ((0, layout.length),), Window(12)))
    leaves, gradient = states((4, 2), layout.length, layout.length)
    found = []
    for number, kind in enumerate((Batches, OneByOne)):
        kernel = kind(kernel_named(name), halved)
        register_kernel(f"batches_{number}", kernel)
        output = MergedAttention.apply(*leaves, None, calls, 0.3, f"batches_{number}")
        found.append((output, *torch.autograd.grad(output, leaves, gradient)))
        assert kernel.largest == 6
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "dtype"), [("cuda_flash", torch.bfloat16), ("cuda_efficient", torch.float32)]
)
@pytest.mark.parametrize("width", [60, 64])
def test_torchs_kernels_for_a_gpu_take_batches(name, dtype, width):
    """By the shapes that torch states for its operators, on tensors without values."""
    layout = layout_of([(300, [90, 20])])
    calls = flatten(parts_of(layout.prompts, ((0, layout.length),), Window(32)))
    leaves, gradient = states((4, 2), layout.length, layout.length, dtype=dtype, width=width)
    there = [one.detach().to("meta").requires_grad_() for one in leaves]
    output = MergedAttention.apply(*there, None, calls, 0.3, name)
    gradients = torch.autograd.grad(output, there, gradient.to("meta"))
    assert [one.shape for one in (output, *gradients)] == [one.shape for one in (gradient, *leaves)]


def test_a_window_makes_no_mask_and_copies_no_more_than_its_blocks():
    """No tensor is larger than the output: what is reversed is less than the row."""
    layout = layout_of([(20, [400, 300])])
    leaves, _ = states((2, 1), layout.length, layout.length)
    parts = parts_of(layout.prompts, ((0, layout.length),), Window(64))
    with Largest() as seen, torch.no_grad():
        output, _ = run_parts(*leaves, parts, 1.0, kernel_named("cpu"))
    assert seen.elements == output.numel()
    assert not seen.names & {"aten::cat", "aten::ones", "aten::tril", "aten::repeat_interleave"}


class Layer(torch.nn.Module):
    """An attention layer's number and its configuration."""

    def __init__(self, layer_idx=0, **config):
        super().__init__()
        self.layer_idx, self.config = layer_idx, type("Config", (), config)()


def test_which_pattern_a_layer_has():
    """The configuration's type of the layer, else the window that it hands over; a window that holds all is none."""
    types = ["sliding_attention", "full_attention", "chunked_attention"]
    named = {"layer_types": types, "sliding_window": 8, "attention_chunk_size": 16}
    assert layer_pattern(Layer(0, **named), 8, 100) == Window(8)
    assert layer_pattern(Layer(0, **named), None, 100) == Window(8)
    assert layer_pattern(Layer(1, **named), 8, 100) == Full()
    assert layer_pattern(Layer(2, **named), None, 100) == Chunked(16)
    assert layer_pattern(Layer(2, **named), None, 16) == Full()
    assert layer_pattern(Layer(sliding_window=8), 8, 100) == Window(8)
    assert layer_pattern(Layer(), None, 100) == layer_pattern(Layer(), 100, 100) == Full()
    with pytest.raises(UserError, match="of type sparse_attention, which the shared-prefix forward does not"):
        layer_pattern(Layer(layer_types=["sparse_attention"]), None, 100)
