"""Stand-ins for FlashAttention's packages, which need a GPU: their signatures, what they insist on, what they compute.

Signatures are those of flash-attn 2.8.3 (`flash_attn/flash_attn_interface.py`), of FlashAttention 3
(`hopper/flash_attn_interface.py`) and of flash-attn-4 4.0.0b36 (`flash_attn/cute/interface.py`), semantics their
docstrings': `[total, heads, D]`, cumulative lengths int32, grouped heads, causal masks aligned to the bottom right,
log-sum-exp `[heads, total]`.
"""

from __future__ import annotations

import types
from collections.abc import Iterator

import torch


def check_contract(q, k, v, cu_q, cu_k, max_q, max_k) -> None:
    """What the CUDA kernels insist on, or silently assume."""
    for one, cumulative, longest in ((q, cu_q, max_q), (k, cu_k, max_k), (v, cu_k, max_k)):
        assert one.dim() == 3 and one.stride(-1) == 1 and one.shape[2] % 8 == 0 and one.shape[2] <= 256
        assert cumulative.dtype == torch.int32 and cumulative.is_contiguous()
        assert cumulative[0] == 0 and cumulative[-1] == one.shape[0]
        assert longest == cumulative.diff().max() and (cumulative.diff() > 0).all()
    assert len(cu_q) == len(cu_k) and q.shape[1] % k.shape[1] == 0 and k.shape[:2] == v.shape[:2]
    assert q.shape[2] == k.shape[2] >= v.shape[2]


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
    output, lse = q.new_empty(*q.shape[:2], v.shape[2]), q.new_empty(q.shape[1], q.shape[0])
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
    assert out.stride(-1) == dout.stride(-1) == 1 and out.shape == dout.shape == (*q.shape[:2], v.shape[2])
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
        of_heads = (k.shape[1], shared)
        dk[keys] = torch.einsum("hqk,qhd->khd", slope, q[queries]).unflatten(1, of_heads).sum(2)
        dv[keys] = torch.einsum("hqk,qhd->khd", weights, dout[queries]).unflatten(1, of_heads).sum(2)


def flash_attn_2() -> types.SimpleNamespace:
    """`flash_attn.flash_attn_interface` of 2.8.3, the two functions that are called."""

    def forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
        block_table=None, leftpad_k=None, seqused_k=None, zero_tensors=False,
    ):  # fmt: skip
        assert dropout_p == 0.0
        assert v.shape == k.shape
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
        assert all(one is None for one in unused) and v.shape == k.shape
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


def flash_attn_4() -> types.SimpleNamespace:
    """`flash_attn.cute.interface` of flash-attn-4 4.0.0b36: the two functions, without what is not called."""

    def forward(
        q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, max_seqlen_q=None,
        max_seqlen_k=None, min_seqlen_k=None, page_table=None, softmax_scale=None, causal=False, softcap=None,
        window_size_left=None, window_size_right=None, learnable_sink=None, return_lse=False, out=None, lse=None,
    ):  # fmt: skip
        unused = (qv, seqused_q, seqused_k, min_seqlen_k, page_table, window_size_left, window_size_right)
        assert all(one is None for one in (*unused, learnable_sink, out, lse)) and return_lse
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return *reference_forward(q, k, v, *lengths, softmax_scale, causal, softcap), None, None, None

    def backward(
        q, k, v, out, dout, lse, softmax_scale=None, causal=False, softcap=0.0, window_size_left=None,
        window_size_right=None, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None,
        max_seqlen_q=None, max_seqlen_k=None, deterministic=False, dq=None, dk=None, dv=None, dlse=None,
        learnable_sink=None,
    ):  # fmt: skip
        unused = (window_size_left, window_size_right, seqused_q, seqused_k, dlse, learnable_sink)
        assert all(one is None for one in unused) and deterministic is False
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, softcap)
        reference_backward(dout, q, k, v, out, lse, dq, dk, dv, *lengths)
        return dq, dk, dv

    return types.SimpleNamespace(_flash_attn_fwd=forward, _flash_attn_bwd=backward)


MODULES = {"flash2": flash_attn_2, "flash3": flash_attn_3, "flash4": flash_attn_4}
