"""FlashAttention's call contract on CPU: a stand-in module with the documented semantics takes the package's place.

Its signatures are those of flash-attn 2.8.3 (`flash_attn/flash_attn_interface.py`) and of FlashAttention 3
(`hopper/flash_attn_interface.py`), its semantics their docstrings': `[total, heads, D]`, cumulative lengths
int32, grouped heads, causal masks aligned to the bottom right, log-sum-exp `[heads, total]`.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from transformers import CONFIG_MAPPING

from align.core.errors import UserError
from align.longseq import capped, pack, pair_logps
from align.longseq.attention import ATTENTIONS, attend, attend_plain, prepare
from align.longseq.flash import check_flash, flash_problem, load_flash
from align.longseq.kernels import register_kernel, with_softcap
from align.longseq.patterns import FULL, Chunked, Window
from align.longseq.sharding import balanced_shards, count_tokens
from align.training.run import head_width
from tests.longseq.plain import assert_close, gradients, make_example, plain_pair_logps, relative_error
from tests.longseq.test_merge import layout_of, outcome, states
from tests.tiny import tiny_model


def check_contract(q, k, v, cu_q, cu_k, max_q, max_k) -> None:
    """What the CUDA kernels insist on, or silently assume."""
    for one, cumulative, longest in ((q, cu_q, max_q), (k, cu_k, max_k), (v, cu_k, max_k)):
        assert one.dim() == 3 and one.stride(-1) == 1 and one.shape[2] % 8 == 0 and one.shape[2] <= 256
        assert cumulative.dtype == torch.int32 and cumulative.is_contiguous()
        assert cumulative[0] == 0 and cumulative[-1] == one.shape[0]
        assert longest == cumulative.diff().max() and (cumulative.diff() > 0).all()
    assert len(cu_q) == len(cu_k) and q.shape[1] % k.shape[1] == 0 and k.shape == v.shape


def sequences(q, k, cu_q, cu_k, scale, causal, softcap) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Of each sequence its queries, its keys and the capped, masked scores `[h, q, k]`; a cap of 0 is none."""
    shared = q.shape[1] // k.shape[1]
    for i in range(len(cu_q) - 1):
        queries, keys = slice(cu_q[i], cu_q[i + 1]), slice(cu_k[i], cu_k[i + 1])
        scores = torch.einsum("qhd,khd->hqk", q[queries], k[keys].repeat_interleave(shared, 1)) * scale
        if softcap:
            scores = softcap * (scores / softcap).tanh()
        if causal:
            rows, columns = scores.shape[1:]
            hidden = torch.ones(rows, columns).tril(columns - rows) == 0
            scores = scores.masked_fill(hidden, -torch.inf)
        yield queries, keys, scores


def reference_forward(q, k, v, cu_q, cu_k, max_q, max_k, scale, causal, softcap):
    """Output `[total, h, D]`, log-sum-exp `[h, total]`."""
    check_contract(q, k, v, cu_q, cu_k, max_q, max_k)
    output, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0])
    for queries, keys, scores in sequences(q, k, cu_q, cu_k, scale, causal, softcap):
        values = v[keys].repeat_interleave(q.shape[1] // k.shape[1], 1)
        output[queries] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        lse[:, queries] = scores.logsumexp(-1)
    return output, lse


def reference_backward(
    dout, q, k, v, out, lse, dq, dk, dv, cu_q, cu_k, max_q, max_k, scale, causal, softcap
):  # fmt: skip
    """As the kernels compute it: weights from the log-sum-exp, and the output for Σ do · o; in place."""
    check_contract(q, k, v, cu_q, cu_k, max_q, max_k)
    assert out.stride(-1) == dout.stride(-1) == 1 and out.shape == dout.shape == q.shape
    assert lse.is_contiguous() and lse.shape == (q.shape[1], q.shape[0])
    assert all(one.is_contiguous() for one in (dq, dk, dv))
    shared = q.shape[1] // k.shape[1]
    for queries, keys, scores in sequences(q, k, cu_q, cu_k, scale, causal, softcap):
        weights = (scores - lse[:, queries, None]).exp()
        values, whole = (one[keys].repeat_interleave(shared, 1) for one in (v, k))
        delta = (dout[queries] * out[queries]).sum(-1).T[..., None]
        slope = weights * (torch.einsum("qhd,khd->hqk", dout[queries], values) - delta) * scale
        if softcap:
            slope = slope * (1 - (scores.clamp_min(-softcap) / softcap) ** 2)
        dq[queries] = torch.einsum("hqk,khd->qhd", slope, whole)
        grouped = (k[keys].shape[0], k.shape[1], shared, k.shape[2])
        dk[keys] = torch.einsum("hqk,qhd->khd", slope, q[queries]).reshape(grouped).sum(2)
        dv[keys] = torch.einsum("hqk,qhd->khd", weights, dout[queries]).reshape(grouped).sum(2)


def flash_attn_2() -> types.SimpleNamespace:
    """`flash_attn.flash_attn_interface` of 2.8.3, the two functions that are called."""

    def forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
        block_table=None, leftpad_k=None, seqused_k=None, zero_tensors=False,
    ):  # fmt: skip
        assert dropout_p == 0.0
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return (
            *reference_forward(q, k, v, *lengths, softmax_scale, causal, softcap),
            torch.empty(0),
            torch.empty(2),
        )

    def backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes,
        deterministic, rng_state=None, zero_tensors=False,
    ):  # fmt: skip
        assert (dropout_p, window_size_left, window_size_right) == (0.0, -1, -1)
        assert alibi_slopes is None and deterministic is False
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        lengths = (*lengths, softmax_scale, causal, softcap)
        reference_backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, *lengths)

    return types.SimpleNamespace(_flash_attn_varlen_forward=forward, _flash_attn_varlen_backward=backward)


def flash_attn_3() -> types.SimpleNamespace:
    """`flash_attn_interface` as in the 2.8.3 release; later ones rename `out`, `causal` and the window."""

    def forward(
        q, k, v, k_new, v_new, qv, out, cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_q, seqused_k,
        max_seqlen_q, max_seqlen_k, page_table, kv_batch_idx, leftpad_k, rotary_cos, rotary_sin,
        seqlens_rotary, q_descale, k_descale, v_descale, softmax_scale, causal, window_size=(-1, -1),
        attention_chunk=0, softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, num_splits=1,
        pack_gqa=None, sm_margin=0,
    ):  # fmt: skip
        unused = (k_new, v_new, qv, out, cu_seqlens_k_new, seqused_q, seqused_k, page_table, kv_batch_idx,
                  leftpad_k, rotary_cos, rotary_sin, seqlens_rotary, q_descale, k_descale, v_descale)  # fmt: skip
        assert all(one is None for one in unused)
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return *reference_forward(q, k, v, *lengths, softmax_scale, causal, softcap), None, None

    def backward(
        dout, q, k, v, out, softmax_lse, cu_seqlens_q, cu_seqlens_k, sequed_q, sequed_k, max_seqlen_q,
        max_seqlen_k, dq, dk, dv, softmax_scale, causal, window_size=(-1, -1), softcap=0.0,
        deterministic=False, sm_margin=0,
    ):  # fmt: skip
        assert sequed_q is None and sequed_k is None and deterministic is False
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        lengths = (*lengths, softmax_scale, causal, softcap)
        reference_backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, *lengths)

    return types.SimpleNamespace(_flash_attn_forward=forward, _flash_attn_backward=backward)


MODULES = {"flash2": flash_attn_2, "flash3": flash_attn_3}


@pytest.fixture(params=sorted(MODULES))
def kernel(request) -> str:
    """The name under which a kernel over a stand-in module is registered."""
    register_kernel(f"{request.param} stand-in", load_flash(request.param, module=MODULES[request.param]()))
    return f"{request.param} stand-in"


@pytest.mark.parametrize("pattern", [FULL, Window(6), Chunked(8)], ids=str)
@pytest.mark.parametrize("width", [8, 12, 20], ids=lambda width: f"head width {width}")
@pytest.mark.parametrize("degree", [1, 3])
def test_calls_meet_the_contract_and_give_the_plain_result(kernel, degree, width, pattern):
    """fp64 forward and gradients; widths that 8 does not divide are padded; whole rows and shards; windows."""
    layout = layout_of([(21, [7, 1, 5]), (9, []), (1, [2, 8])])
    for spans in balanced_shards(layout, degree):
        prepared = prepare(layout, queries=spans)
        leaves, gradient = states((4, 2), count_tokens(spans), layout.length, width=width)
        way = partial(attend, kernel=kernel, pattern=pattern)
        for actual, expected in zip(
            outcome(way, leaves, gradient, prepared),
            outcome(partial(attend_plain, pattern=pattern), leaves, gradient, prepared),
            strict=True,
        ):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["flash2", "flash3", "cpu", "cpu, a few scores at a time"])
def test_soft_capped_scores(name, monkeypatch):
    """The cap is part of the kernel's name; against scores capped and masked by hand, gradients included."""
    kernel = with_softcap(name, 1.5)
    assert kernel == f"{name if name in MODULES else 'capped'} softcap 1.5"
    if name in MODULES:
        register_kernel(kernel, load_flash(kernel, module=MODULES[name]()))
    elif name != "cpu":
        monkeypatch.setattr(capped, "SCORES", 100)
    layout = layout_of([(9, [4, 3])])
    leaves, gradient = states((4, 2), layout.length, layout.length)
    prepared = prepare(layout)
    mask = torch.zeros(layout.length, layout.length, dtype=torch.bool)
    for branch in prepared.branches:
        keys = [token for span in branch.keys for token in range(*span)]
        for place, token in enumerate(keys):
            mask[token, keys[: place + 1]] = True

    def by_hand(query, key, value, *, layout):
        scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) * query.shape[3] ** -0.5
        scores = (1.5 * (scores / 1.5).tanh()).masked_fill(~mask, -torch.inf)
        return scores.softmax(3) @ value.repeat_interleave(2, 1)

    for actual, expected in zip(
        outcome(partial(attend, kernel=kernel), leaves, gradient, prepared),
        outcome(by_hand, leaves, gradient, prepared),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_whole_forward_through_the_package(name):
    """`model.attention` names the attention, the kernel is found by that name; all gradients of a model."""
    register_kernel(name, load_flash(name, module=MODULES[name]()))
    import numpy as np

    rng = np.random.default_rng(0)
    examples = [
        make_example(rng, prompt=21, answers=[7, 3, 5]),
        make_example(rng, prompt=9, answers=[2, 8, 1]),
    ]
    plain, flash = tiny_model(), tiny_model()
    flash.set_attn_implementation(ATTENTIONS[name])
    expected, actual = plain_pair_logps(plain, examples), pair_logps(flash, pack(examples))
    torch.testing.assert_close(actual.rejected, expected.rejected, rtol=1e-5, atol=1e-5)
    losses = [(logps.chosen.sum() - logps.rejected.square().sum()) for logps in (actual, expected)]
    assert_close(gradients(flash, losses[0]), gradients(plain, losses[1]))


def test_bottom_right_alignment_of_the_stand_in():
    """The docstring's mask for 2 queries and 5 keys: 1 1 1 1 0 / 1 1 1 1 1."""
    q, k = torch.randn(2, 1, 8), torch.randn(5, 1, 8)
    ((_, _, scores),) = sequences(q, k, torch.tensor([0, 2]), torch.tensor([0, 5]), 1.0, True, 0.0)
    assert scores.isfinite().int().tolist() == [[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_absent_package_and_machine_are_one_sentence(name):
    with pytest.raises(UserError, match=rf"model.attention={name} needs .*extra `flash`"):
        check_flash(name, dtype=torch.bfloat16)
    if name == "flash2":
        with pytest.raises(UserError, match="needs the extra `flash`"):
            load_flash(name)


@pytest.mark.parametrize(
    ("name", "dtype", "weights", "width", "capability", "problem"),
    [
        ("flash2", torch.bfloat16, torch.float32, 128, (8, 0), None),
        ("flash2", torch.float16, torch.float32, 256, (8, 9), None),
        ("flash3", torch.bfloat16, torch.bfloat16, None, (9, 0), None),
        (
            "flash2",
            torch.float16,
            torch.float16,
            64,
            (7, 5),
            "compute capability 8.0, and this one has 7.5: .*sdpa",
        ),
        (
            "flash3",
            torch.bfloat16,
            torch.float32,
            64,
            (8, 0),
            "capability 9.0, and this one has 8.0: .*flash2 or sdpa",
        ),
        ("flash3", torch.float16, torch.float32, 64, (7, 0), "set model.attention=sdpa"),
        (
            "flash2",
            torch.bfloat16,
            torch.float32,
            512,
            (9, 0),
            "heads up to 256 wide, and this model's have 512",
        ),
        ("flash2", torch.float16, torch.bfloat16, 64, (8, 0), "bfloat16 weights under trainer.fp16"),
    ],
)
def test_what_a_package_cannot_do_is_known_before(name, dtype, weights, width, capability, problem):
    found = flash_problem(name, dtype, weights, width, capability)
    assert found is None if problem is None else re.search(problem, found)


def test_the_widest_head_of_a_configuration():
    """Named, or hidden size over heads; of a composite one its text model's."""
    llama = CONFIG_MAPPING["llama"]
    assert head_width(llama(hidden_size=64, num_attention_heads=4)) == 16
    assert head_width(llama(hidden_size=64, num_attention_heads=4, head_dim=40)) == 40
    gemma = CONFIG_MAPPING["gemma3"](text_config={"head_dim": 320, "num_attention_heads": 4})
    assert head_width(gemma) == 320


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", sorted(MODULES))
def test_on_a_gpu(name):
    """The real package in bf16 against fp64 on CPU."""
    pytest.importorskip({"flash2": "flash_attn", "flash3": "flash_attn_interface"}[name])
    register_kernel(f"real {name}", load_flash(name))
    layout = layout_of([(300, [130, 70, 1]), (90, [200])])
    leaves, gradient = states((4, 2), layout.length, layout.length, dtype=torch.bfloat16, width=64)
    exact = [one.detach().double().requires_grad_() for one in leaves]
    expected = outcome(attend_plain, exact, gradient.double(), prepare(layout))
    there = [one.detach().cuda().requires_grad_() for one in leaves]
    way = partial(attend, kernel=f"real {name}")
    for actual, wanted in zip(outcome(way, there, gradient.cuda(), prepare(layout)), expected, strict=True):
        assert relative_error(actual.double().cpu(), wanted) <= 1e-2
