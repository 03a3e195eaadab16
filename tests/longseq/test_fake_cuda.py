"""Every way to a GPU's kernels on tensors without numbers: shapes, types, devices, strides, for three generations."""

from __future__ import annotations

import types
from itertools import product

import numpy as np
import pytest
import torch

from align.longseq import ATTENTION, choice, pack, pair_logps
from align.longseq import flash as flash_module
from align.longseq.aligned import aligned
from align.longseq.choice import Asked, choose
from align.longseq.flash import load_flash
from align.longseq.kernels import kernel_named, register_kernel
from align.longseq.merge import run_parts, run_parts_backward
from align.longseq.parts import parts_of
from align.patterns.pattern import FULL, Window
from tests.fake_cuda import FakeCuda
from tests.longseq.plain import make_example
from tests.longseq.test_merge import layout_of
from tests.tiny import tiny_model

GENERATIONS = {"sm80": (8, 0), "sm90": (9, 0), "sm100": (10, 0)}
PACKAGES = ("flash2", "flash3", "flash4")
SHAPES = [(64, 64), (60, 60), (96, 96), (128, 128), (192, 128), (200, 200), (256, 256), (512, 512)]


@pytest.fixture(autouse=True)
def no_lengths_are_left():
    """Cumulative lengths are kept for later calls, which must not meet tensors without numbers."""
    yield
    flash_module._cumulative.cache_clear()


def readable(*tensors: torch.Tensor) -> None:
    """What kernels load 16 bytes at a time."""
    for one in tensors:
        numbers = 16 // one.element_size()
        assert one.device.type == "cuda" and one.stride(-1) == 1 and one.storage_offset() % numbers == 0
        assert all(
            step % numbers == 0 for step, size in zip(one.stride()[:-1], one.shape, strict=False) if size > 1
        )


def calls(q, k, v, cu_q, cu_k, unlike: bool) -> None:
    """The call contract of a varlen kernel."""
    readable(q, k, v)
    assert q.dtype == k.dtype == v.dtype and q.dtype in (torch.float16, torch.bfloat16)
    assert q.dim() == 3 and q.shape[1] % k.shape[1] == 0 and k.shape[:2] == v.shape[:2]
    assert k.shape[2] == q.shape[2] and (unlike or v.shape[2] == k.shape[2]) and q.shape[2] <= 256
    for lengths in (cu_q, cu_k):
        assert lengths.dtype == torch.int32 and lengths.device.type == "cuda" and lengths.is_contiguous()


def module_of(name: str) -> types.SimpleNamespace:
    """A package that answers with tensors of its outputs' shapes."""
    unlike = name == "flash4"

    def ahead(q, k, v, cu_q, cu_k):
        calls(q, k, v, cu_q, cu_k, unlike)
        return q.new_empty(*q.shape[:2], v.shape[2]), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)

    def back(dout, q, k, v, out, lse, dq, dk, dv, cu_q, cu_k):
        calls(q, k, v, cu_q, cu_k, unlike)
        readable(dout, out, dq, dk, dv)
        assert out.shape == dout.shape == (*q.shape[:2], v.shape[2])
        assert lse.shape == (q.shape[1], q.shape[0]) and lse.dtype == torch.float32 and lse.is_contiguous()
        for gradient, states in ((dq, q), (dk, k), (dv, v)):
            assert gradient.shape == states.shape and gradient.dtype == states.dtype

    def fwd(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        causal,
        softcap,
        return_lse,
    ):
        return *ahead(q, k, v, cu_seqlens_q, cu_seqlens_k), None, None, None

    def bwd(
        q, k, v, out, dout, lse, softmax_scale, causal, softcap, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
        max_seqlen_k, deterministic, dq, dk, dv,
    ):  # fmt: skip
        back(dout, q, k, v, out, lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k)

    return types.SimpleNamespace(
        _flash_attn_varlen_forward=lambda *a, **k: (*ahead(*a[:5]), None, None),
        _flash_attn_varlen_backward=lambda *a, **k: back(*a[:11]),
        _flash_attn_forward=lambda *a, **k: (*ahead(*a[:3], *a[7:9]), None, None),
        _flash_attn_backward=lambda *a, **k: back(*a[:6], *a[12:15], *a[6:8]),
        _flash_attn_fwd=fwd,
        _flash_attn_bwd=bwd,
    )


def chosen(asked: Asked, capability: tuple[int, int], package: str | None) -> str | None:
    """What `auto` takes where one package is installed, or none."""
    there = {package}.__contains__
    name = choose(asked, capability, lambda name, asked: None, there=there).kernel
    if name is not None and name.startswith("flash"):
        register_kernel(name, load_flash(name, module=module_of(name.partition(" ")[0])))
    return name


# A generation, the package that is installed there, a type and a pattern: each way to a kernel once.
CASES = [
    *product(["sm80"], [None], [torch.float32, torch.float16], [FULL]),
    *product(GENERATIONS, [None], [torch.bfloat16], [FULL]),
    *product(["sm80"], [None], [torch.float32, torch.bfloat16], [Window(24)]),
    *product(GENERATIONS, ["flash2"], [torch.bfloat16], [FULL]),
    *product(["sm90"], ["flash3"], [torch.bfloat16], [FULL, Window(24)]),
    *product(["sm90"], ["flash4"], [torch.float16], [FULL]),
    *product(["sm90", "sm100"], ["flash4"], [torch.bfloat16], [FULL, Window(24)]),
]


@pytest.mark.parametrize(
    ("generation", "package", "dtype", "pattern"), CASES, ids=lambda value: str(value).replace("torch.", "")
)
def test_attention_forward_and_backward(generation, package, dtype, pattern):
    """Packed prompts, token-major states as layers hand them on; every width, each kernel with its own contract."""
    layout = layout_of([(60, [30, 20, 1]), (20, [33])])
    parts, length = parts_of(layout.prompts, ((0, layout.length),), pattern), layout.length
    for width, of_values in SHAPES if pattern == FULL else SHAPES[:2]:
        name = chosen(Asked(dtype, (width, of_values), 4), GENERATIONS[generation], package)
        assert name is not None
        kernel = kernel_named(name)
        of_values = of_values if kernel.unlike else width
        with FakeCuda():
            shapes = ((8, width), (2, width), (2, of_values), (8, of_values))
            query, key, value, gradient = (
                torch.empty(1, length, heads, numbers, dtype=dtype, device="cuda").transpose(1, 2)
                for heads, numbers in shapes
            )
            output, lse = run_parts(query, key, value, parts, 0.1, kernel)
            gradients = run_parts_backward(gradient, query, key, value, output, lse, parts, 0.1, kernel)
        assert output.shape == (1, 8, length, of_values) and output.transpose(1, 2).is_contiguous()
        assert lse.shape == (1, 8, length) and lse.dtype == torch.float32
        for found, states in zip((output, *gradients), (gradient, query, key, value), strict=True):
            assert found.shape == states.shape and found.dtype == dtype and found.device.type == "cuda"


def test_which_packages_are_reached():
    """The test above is of no use for a package that nothing chooses."""
    seen = {
        chosen(Asked(torch.bfloat16, (128, 128), 4), capability, package)
        for capability in GENERATIONS.values()
        for package in (None, *PACKAGES)
    }
    assert seen == {"cuda_flash", *PACKAGES}


def test_what_kernels_read():
    """Slices of tokens and heads as they are; what is transposed, expanded or lies askew as a copy; widths padded."""
    states = torch.arange(2 * 6 * 4 * 16.0).view(2, 6, 4, 16)
    kept = (states, states.transpose(1, 2), states[:, 1:4], states[..., 1:3, :], states[..., :8])
    assert all(aligned(one) is one for one in kept)
    expanded = states[:1, :1, :1].expand(2, 3, 4, 16)
    for askew in (states[..., 1:9], states.transpose(2, 3)[..., 8:, :], expanded):
        found = aligned(askew)
        assert found.is_contiguous() and found.data_ptr() != askew.data_ptr()
        assert found.shape[3] % 8 == 0 and torch.equal(found[..., : askew.shape[3]], askew)
    padded = aligned(states[..., :12])
    assert torch.equal(padded[..., :12], states[..., :12]) and not padded[..., 12:].any()


@pytest.mark.parametrize(
    ("generation", "package", "kind"),
    [("sm80", None, "llama"), ("sm90", "flash3", "qwen3"), ("sm100", "flash4", "phi3")],
)
def test_a_whole_forward(generation, package, kind, monkeypatch):
    """A packed batch in one copy, embedding, layers, head and sums: nothing of it meets a tensor of the CPU."""
    name = chosen(Asked(torch.bfloat16, (16, 16), 2), GENERATIONS[generation], package)
    monkeypatch.setattr(choice, "torchs_kernel", lambda query, value, softcap: name)
    rng = np.random.default_rng(0)
    examples = [make_example(rng, prompt=40, answers=[20, 9]), make_example(rng, prompt=7, answers=[3])]
    batch = pack(examples)
    model = tiny_model(kind).to(torch.bfloat16)
    model.set_attn_implementation(ATTENTION)
    with FakeCuda():
        for part in model.modules():
            for where in (part._parameters, part._buffers):
                where.update({key: one.to("cuda") for key, one in where.items() if one is not None})
        logps = pair_logps(model, batch.to("cuda"), nll_scope="sequence", chunk_size=16)
    assert (logps.chosen.shape, logps.rejected.shape) == ((2,), (2, 1))
    for one in (logps.chosen, logps.rejected, logps.nll):
        assert one.device.type == "cuda" and one.dtype == torch.float64
    assert logps.chosen_length.device.type == "cuda"
