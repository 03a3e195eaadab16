"""`model.attention=cudnn`: which calls are cuDNN's, and that they are made as its operators take them.

No GPU here: stand-ins keep the operators' contract (torch's `_meta_registrations.py`: log-sum-exps `[B, h, q, 1]`) and
compute with torch's kernel for CPUs; on tensors without numbers the operators' own shape functions answer.
"""

from __future__ import annotations

import types
from functools import partial

import pytest
import torch

from align.core.errors import UserError
from align.longseq import cudnn
from align.longseq.attention import attend, attend_plain, prepare
from align.longseq.choice import CHOOSERS
from align.longseq.cudnn import CudnnKernel
from align.longseq.flash_fit import check_flash
from align.longseq.kernels import register_kernel
from align.longseq.merge import run_parts, run_parts_backward
from align.longseq.parts import parts_of
from align.longseq.torch_kernels import CpuKernel, CudaFlashKernel
from tests.fake_cuda import FakeCuda
from tests.longseq.test_merge import layout_of, outcome, states

ROWS = [(60, [30, 20, 1]), (20, [33])]


@pytest.fixture
def sizes(monkeypatch) -> list[tuple[str, int]]:
    """Every call: whose it is, and its queries."""
    made: list[tuple[str, int]] = []
    own = CpuKernel()

    def ahead(query, key, value, attn_bias, compute_log_sumexp, dropout_p, is_causal, *, scale):
        assert attn_bias is None and compute_log_sumexp and dropout_p == 0.0 and is_causal
        made.append(("cudnn", query.shape[2]))
        output, lse = own.forward(query, key, value, (query.shape[2],), scale)
        return output, lse[..., None], None, None, query.shape[2], key.shape[2], None, None, None

    def back(
        grad_out, query, key, value, out, logsumexp, philox_seed, philox_offset, attn_bias, cum_seq_q, cum_seq_k,
        max_q, max_k, dropout_p, is_causal, *, scale,
    ):  # fmt: skip
        assert attn_bias is cum_seq_q is cum_seq_k is None and dropout_p == 0.0 and is_causal
        assert (max_q, max_k) == (query.shape[2], key.shape[2]) and logsumexp.shape == (*out.shape[:3], 1)
        made.append(("cudnn gradient", query.shape[2]))
        return own.backward(grad_out, query, key, value, out, logsumexp[..., 0], (max_q,), scale)

    def flash(self, query, *arguments):
        made.append(("flash", query.shape[2]))
        return own.forward(query, *arguments)

    stand_in = types.SimpleNamespace(
        _scaled_dot_product_cudnn_attention=ahead, _scaled_dot_product_cudnn_attention_backward=back
    )
    monkeypatch.setattr(cudnn, "_aten", stand_in)
    monkeypatch.setattr(CudaFlashKernel, "forward", flash)
    monkeypatch.setattr(CudaFlashKernel, "backward", lambda self, *arguments: own.backward(*arguments))
    return made


@pytest.mark.parametrize("width", [8, 20])  # the second is padded
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_large_squares_are_cudnns_and_nothing_changes(sizes, heads, width):
    """fp64 against the plain way; only squares of 30 tokens and more are cuDNN's."""
    register_kernel("cudnn of 30", CudnnKernel(least=30))
    layout = layout_of(ROWS)
    leaves, gradient = states(heads, layout.length, layout.length, width=width)
    expected = outcome(attend_plain, leaves, gradient, prepare(layout))
    found = outcome(partial(attend, kernel="cudnn of 30"), leaves, gradient, prepare(layout))
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)
    assert sorted(size for name, size in sizes if name == "cudnn") == [30, 33, 60]
    assert sorted(size for name, size in sizes if name == "cudnn gradient") == [30, 33, 60]
    # Small squares, and each prompt's one rectangle of all its answers.
    assert {size for name, size in sizes if name == "flash"} == {1, 20, 33, 51}


@pytest.mark.parametrize(
    ("width", "dtype"), [(64, torch.bfloat16), (60, torch.float16), (128, torch.bfloat16)]
)
def test_its_operators_take_what_they_are_given(width, dtype):
    """Shapes, types and devices, by torch's own shape functions."""
    layout, kernel = layout_of(ROWS), CudnnKernel(least=1)
    parts, length = parts_of(layout.prompts, ((0, layout.length),)), layout.length
    with FakeCuda():
        query, key, value, gradient = (
            torch.empty(1, length, heads, width, dtype=dtype, device="cuda").transpose(1, 2)
            for heads in (8, 2, 2, 8)
        )
        output, lse = run_parts(query, key, value, parts, 0.1, kernel)
        gradients = run_parts_backward(gradient, query, key, value, output, lse, parts, 0.1, kernel)
    assert lse.shape == (1, 8, length) and lse.dtype == torch.float32
    for found, given in zip((output, *gradients), (gradient, query, key, value), strict=True):
        assert found.shape == given.shape and found.dtype == dtype and found.device.type == "cuda"


def test_wide_heads_and_rectangles_stay_flash_attentions():
    kernel = CudnnKernel(least=4)
    wide, narrow, short = torch.empty(1, 1, 8, 192), torch.empty(1, 1, 8, 128), torch.empty(1, 1, 3, 64)
    taken = [kernel._takes(one, squares) for one, squares in ((wide, (8,)), (short, (3,)), (narrow, ()))]
    assert taken == [False] * 3 and kernel._takes(narrow, (8,))


def test_where_it_cannot_run(monkeypatch):
    """On a CPU it is torch's kernel, as with `sdpa`; a run that asks for it by name is refused."""
    query = torch.empty(1, 2, 3, 16)
    assert CHOOSERS["cudnn"](query, query, None) == "cpu"
    assert CHOOSERS["cudnn"](query, query, 3.0) == "capped softcap 3.0"
    with pytest.raises(UserError, match=r"model\.attention=cudnn needs a CUDA GPU"):
        check_flash("cudnn", dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(
        UserError, match=r"capability 9\.0 to 10\.x, and this one has 8\.0: set model\.attention"
    ):
        check_flash("cudnn", dtype=torch.bfloat16, capability=(8, 0))
    with pytest.raises(UserError, match="bfloat16 or float16 only"):
        check_flash("cudnn", dtype=torch.float32, capability=(9, 0))
    check_flash("cudnn", dtype=torch.bfloat16, capability=(9, 0), widths=(128, 128))
