"""Attention in parts, merged by log-sum-exp, against the plain path with its copies and masks."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from align.longseq import ATTENTION, Layout, PackedPrompt, pack, pair_logps
from align.longseq import head_slices as head_slices_module
from align.longseq.attention import attend, attend_plain, prepare
from align.longseq.head_slices import head_slices
from align.longseq.kernels import cuda_kernel, kernel_named, sdpa_kernel
from align.longseq.merge import run_parts
from align.longseq.parts import Own, Part, flatten, parts_of, unflatten
from align.longseq.sharding import balanced_shards, count_tokens, token_index
from tests.longseq.plain import make_example, relative_error
from tests.tiny import tiny_model

ROWS = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(1, 30), min_size=0, max_size=5)),
    min_size=1,
    max_size=3,
)
HEADS = st.sampled_from([(1, 1), (4, 2), (9, 3), (5, 5), (6, 1)])
merged = partial(attend, kernel="cpu")


def layout_of(rows) -> Layout:
    """Prompts with their answers, one after the other."""
    prompts, offset = [], 0
    for prompt, answers in rows:
        spans = list(pairwise(np.cumsum([offset, prompt, *answers]).tolist()))
        prompts.append(PackedPrompt(spans[0], tuple(spans[1:])))
        offset = prompts[-1].stop
    return Layout(tuple(prompts))


def states(heads, queries, keys, *, seed=0, dtype=torch.float64, width=8):
    """Query, key, value as leaves, and a gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(heads[0], queries), (heads[1], keys), (heads[1], keys), (heads[0], queries)]
    drawn = [
        torch.randn(1, h, n, width, generator=generator, dtype=torch.float64).to(dtype) for h, n in shapes
    ]
    return [one.requires_grad_() for one in drawn[:3]], drawn[3]


def outcome(way, leaves, gradient, layout):
    """Output and the three gradients."""
    output = way(*leaves, layout=layout)
    return (output.detach(), *torch.autograd.grad(output, leaves, gradient))


@given(ROWS, HEADS, st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_output_and_gradients_are_the_plain_ones(rows, heads, degree, seed):
    """fp64, whole rows (degree 1) and every rank's shard; packed prompts with 0 to 5 answers, some of one token."""
    layout = layout_of(rows)
    for spans in balanced_shards(layout, degree):
        prepared = prepare(layout, queries=spans)
        leaves, gradient = states(heads, count_tokens(spans), layout.length, seed=seed)
        for actual, expected in zip(
            outcome(merged, leaves, gradient, prepared),
            outcome(attend_plain, leaves, gradient, prepared),
            strict=True,
        ):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_lower_precision(dtype, tolerance):
    """Against fp64 on the same rounded states: fp32 to 1e-6; bf16, whose unit is 2⁻⁸, to 1e-2."""
    layout = layout_of([(300, [130, 70, 1]), (90, [200])])
    prepared = prepare(layout)
    leaves, gradient = states((4, 2), layout.length, layout.length, dtype=dtype, width=16)
    exact = [one.detach().double().requires_grad_() for one in leaves]
    expected = outcome(attend_plain, exact, gradient.double(), prepared)
    for actual, wanted in zip(outcome(merged, leaves, gradient, prepared), expected, strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual.double(), wanted) <= tolerance


def test_gradients_of_shards_add_up():
    """Keys' and values' gradients, summed over the ranks, are those of the whole row."""
    layout = layout_of([(37, [11, 6]), (5, [9])])
    leaves, gradient = states((4, 2), layout.length, layout.length)
    whole = outcome(attend_plain, leaves, gradient, prepare(layout))
    totals = [torch.zeros_like(one) for one in leaves[1:]]
    query = leaves[0].detach()
    for spans in balanced_shards(layout, 3):
        own = token_index(spans, torch.device("cpu"))
        part = [query[:, :, own].requires_grad_(), *leaves[1:]]
        _, _, *grads = outcome(merged, part, gradient[:, :, own], prepare(layout, queries=spans))
        totals = [total + one for total, one in zip(totals, grads, strict=True)]
    for total, expected in zip(totals, whole[2:], strict=True):
        torch.testing.assert_close(total, expected)


def test_own_spans_are_found_as_by_looking_at_every_one():
    """Random own spans and random spans of a row of 60 tokens, against the intersection of sets of tokens."""
    random = np.random.default_rng(0)
    for _ in range(200):
        cuts = sorted(random.choice(60, size=2 * int(random.integers(0, 8)), replace=False).tolist())
        own = tuple(pairwise(cuts))[::2]
        tokens = [token for start, stop in own for token in range(start, stop)]
        start, stop = sorted(random.integers(0, 61, size=2).tolist())
        found = list(Own(own).within((start, stop)))
        assert all(low < high and place[1] - place[0] == high - low for (low, high), place in found)
        held = [token for (low, high), _ in found for token in range(low, high)]
        assert held == [token for token in tokens if start <= token < stop]
        assert [tokens[i] for _, place in found for i in range(*place)] == held


def test_preparing_a_row_grows_as_its_prompts():
    """Twice the prompts, twice the steps and not four times: own spans that are looked at, counted."""
    counts = []
    for prompts in (64, 128, 256):
        row = tuple(
            PackedPrompt((20 * i, 20 * i + 12), ((20 * i + 12, 20 * i + 20),)) for i in range(prompts)
        )
        looked = Counting(balanced_shards(Layout(row), 4)[1])
        parts_of(row, looked)
        counts.append(looked.looked)
    assert counts[2] <= 2.1 * counts[1] <= 2.1 * 2.1 * counts[0]


class Counting(tuple):
    """Spans that count how often one of them is looked at."""

    looked = 0

    def __getitem__(self, place):
        self.looked += 1
        return super().__getitem__(place)


def test_parts_of_a_row():
    """One call for all squares, one for both answers over their prompt; a shard adds its spans' earlier keys."""
    prompts = layout_of([(10, [4, 3]), (5, [2])]).prompts
    assert parts_of(prompts, ((0, 24),)) == (
        Part((0, 24), (0, 24), (10, 4, 3, 5, 2)),
        Part((10, 17), (0, 10)),
        Part((22, 24), (17, 22)),
    )
    shard = parts_of(prompts, ((6, 8), (12, 15)))
    assert shard == (
        Part((0, 2), (6, 8), (2,)),
        Part((2, 5), (12, 15), (2, 1)),
        Part((0, 2), (0, 6)),
        Part((2, 5), (0, 10)),
        Part((2, 4), (10, 12)),
    )
    assert unflatten(flatten(shard)) == list(shard)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns, and whether anything is joined or masked."""

    def __init__(self):
        super().__init__()
        self.elements, self.names = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func.name().partition(".")[0])
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return result


def test_nothing_grows_with_queries_times_keys_and_nothing_is_copied():
    """No tensor is larger than the output, and neither keys are joined nor a mask is made."""
    layout = layout_of([(20, [400, 300])])
    leaves, _ = states((2, 1), layout.length, layout.length)
    parts = parts_of(layout.prompts, ((0, layout.length),))
    with Largest() as seen, torch.no_grad():
        output, _ = run_parts(*leaves, parts, 1.0, kernel_named("cpu"))
    assert seen.elements == output.numel() < 400 * 420
    assert not seen.names & {"aten::cat", "aten::ones", "aten::tril", "aten::repeat_interleave"}


def test_an_empty_shard_stays_in_the_graph():
    layout = layout_of([(3, [2])])
    leaves, _ = states((2, 1), 0, layout.length)
    output = merged(*leaves, layout=prepare(layout, queries=()))
    assert output.shape == (1, 2, 0, 8)
    assert all(not one.any() for one in torch.autograd.grad(output.sum(), leaves))


def test_which_kernel():
    """Widths that differ, and devices without a kernel of ours, take the plain path."""
    narrow, wide = torch.empty(1, 1, 2, 8), torch.empty(1, 1, 2, 16)
    assert sdpa_kernel(narrow, narrow) == "cpu"
    assert sdpa_kernel(narrow, wide) is None
    assert sdpa_kernel(narrow.to("meta"), narrow.to("meta")) is None


@pytest.mark.parametrize(
    ("dtype", "width", "capability", "kernel"),
    [
        (torch.bfloat16, 256, (8, 0), "cuda_flash"),
        (torch.float16, 60, (9, 0), "cuda_flash"),
        (torch.float32, 64, (7, 5), "cuda_efficient"),
        (torch.float32, 512, (8, 0), "cuda_efficient"),
        (torch.bfloat16, 512, (9, 0), "cuda_efficient"),  # Gemma-4's global heads
        (torch.float16, 64, (7, 5), "cuda_efficient"),  # T4
        (torch.float16, 64, (7, 0), "cuda_efficient"),  # V100
        (torch.bfloat16, 64, (7, 5), None),
        (torch.float64, 64, (9, 0), None),
        (
            torch.float32,
            62,
            (9, 0),
            "cuda_efficient",
        ),  # padded; torch's own function would compute all scores
        (torch.bfloat16, 200, (8, 9), "cuda_efficient"),  # no gradient there
        (torch.bfloat16, 200, (12, 0), "cuda_efficient"),
        (torch.bfloat16, 232, (8, 6), "cuda_flash"),
        (torch.bfloat16, 200, (9, 0), "cuda_flash"),
    ],
)
def test_torchs_cuda_kernels_are_taken_as_its_own_function_takes_them(dtype, width, capability, kernel):
    """What each takes, by the checks in torch's `sdp_utils.cpp`."""
    assert cuda_kernel(dtype, width, capability) == kernel


def test_autocast_lowers_the_precision_as_for_torchs_own_function():
    """RoPE leaves queries and keys in fp32; without a cast of ours they would meet bf16 values."""
    rng = np.random.default_rng(0)
    batch = pack([make_example(rng, prompt=40, answers=[20, 9])])
    model = tiny_model()
    model.set_attn_implementation(ATTENTION)
    with torch.no_grad():
        exact = pair_logps(model, batch).chosen
        with torch.autocast("cpu", torch.bfloat16):
            lowered = pair_logps(model, batch).chosen
    assert 0 < relative_error(lowered, exact) < 1e-2


@pytest.mark.parametrize("attention", [ATTENTION, "sdpa"])
def test_the_head_computes_in_the_forwards_precision(attention):
    """accelerate puts autocast around the policy's forward, a reference has it around the call: the same bits."""
    rng = np.random.default_rng(0)
    batch = pack([make_example(rng, prompt=40, answers=[20, 9])])
    policy, reference = tiny_model(), tiny_model()
    for model in (policy, reference):
        model.set_attn_implementation(attention)
    policy.forward = torch.autocast("cpu", torch.bfloat16)(policy.forward)
    with torch.no_grad():
        own = pair_logps(policy, batch)
        with torch.autocast("cpu", torch.bfloat16):
            other = pair_logps(reference, batch)
    assert torch.equal(own.chosen, other.chosen) and torch.equal(own.rejected, other.rejected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_kernels_against_fp64_on_cpu(dtype):
    """torch's CUDA kernels with a merged log-sum-exp: bf16 to 1e-2, fp32 (TF32 off) to 1e-5."""
    layout = layout_of([(300, [130, 70, 1]), (90, [200])])
    leaves, gradient = states((4, 2), layout.length, layout.length, dtype=dtype, width=20)
    exact = [one.detach().double().requires_grad_() for one in leaves]
    expected = outcome(attend_plain, exact, gradient.double(), prepare(layout))
    there = [one.detach().cuda().requires_grad_() for one in leaves]
    way = partial(attend, kernel=sdpa_kernel(there[0], there[2]))
    for actual, wanted in zip(outcome(way, there, gradient.cuda(), prepare(layout)), expected, strict=True):
        assert relative_error(actual.double().cpu(), wanted) <= (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("heads", [(4, 4), (9, 3), (8, 2)], ids=str)
def test_a_few_heads_at_a_time(heads, monkeypatch):
    """fp64, up to the order of sums (a CPU kernel's depends on how many heads it is given)."""
    layout = layout_of([(30, [13, 7, 1]), (9, [20])])
    leaves, gradient = states(heads, layout.length, layout.length)
    way = partial(outcome, merged, leaves, gradient, prepare(layout))
    together = way()
    for bytes_at_once in (1, 12_000, 2**31):
        monkeypatch.setattr(head_slices_module, "SCRATCH", bytes_at_once)
        for one, other in zip(way(), together, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_which_heads_go_together():
    """Equal slices as far as may be; their bytes stay below what is allowed, but for a lone KV head."""
    assert head_slices(32, 8, 2**28) == (((0, 32), (0, 8)),)
    assert head_slices(32, 8, 2**29) == (((0, 16), (0, 4)), ((16, 32), (4, 8)))
    assert len(head_slices(32, 8, 2**40)) == 8 and len(head_slices(6, 1, 2**40)) == 1
    sizes = [last - first for _, (first, last) in head_slices(21, 7, 2**30)]
    assert sum(sizes) == 7 and max(sizes) - min(sizes) <= 1
