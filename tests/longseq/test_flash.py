"""FlashAttention's call contract on CPU: stand-ins with the documented semantics take the packages' places."""

from __future__ import annotations

import importlib
import re
from functools import partial

import pytest
import torch
from transformers import CONFIG_MAPPING

from align.core.errors import UserError
from align.longseq import capped, pack, pair_logps
from align.longseq.attention import ATTENTIONS, _narrowed, attend, attend_plain, prepare
from align.longseq.choice import Asked, problem_on
from align.longseq.flash import load_flash
from align.longseq.flash_fit import check_flash, flash_problem, installed
from align.longseq.kernels import register_kernel, with_softcap
from align.longseq.settings import FLASH_MODULES
from align.longseq.sharding import balanced_shards, count_tokens
from align.patterns.pattern import FULL, Chunked, Window
from align.training.run import head_widths
from tests.longseq.flash_packages import MODULES, flash_attn_4, sequences
from tests.longseq.plain import assert_close, gradients, make_example, plain_pair_logps, relative_error
from tests.longseq.test_merge import layout_of, outcome, states
from tests.tiny import tiny_model


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


@pytest.mark.parametrize("name", [*MODULES, "cpu", "cpu, a few scores at a time"])
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
    with pytest.raises(UserError, match=rf"model.attention={name} needs .*extra `flash"):
        check_flash(name, dtype=torch.bfloat16)
    if name == "flash2":
        with pytest.raises(UserError, match="needs the extra `flash`"):
            load_flash(name)


@pytest.mark.parametrize(
    ("name", "dtype", "weights", "widths", "capability", "problem"),
    [
        ("flash2", torch.bfloat16, torch.float32, (128, 128), (8, 0), None),
        ("flash2", torch.float16, torch.float32, (256, 256), (8, 9), None),
        ("flash3", torch.bfloat16, torch.bfloat16, None, (9, 0), None),
        (
            "flash2",
            torch.float16,
            torch.float16,
            (64, 64),
            (7, 5),
            "capability 8.0, and this one has 7.5: .*sdpa",
        ),
        (
            "flash3",
            torch.bfloat16,
            torch.float32,
            (64, 64),
            (8, 0),
            "capability 9.0 to 9.x, .* 8.0: .*flash2 or sdpa",
        ),
        ("flash3", torch.bfloat16, torch.float32, (64, 64), (10, 0), "9.0 to 9.x, and this one has 10.0"),
        ("flash3", torch.float16, torch.float32, (64, 64), (7, 0), "set model.attention=sdpa"),
        (
            "flash2",
            torch.bfloat16,
            torch.float32,
            (512, 512),
            (9, 0),
            "up to 256 wide, and this model's have 512",
        ),
        ("flash2", torch.float16, torch.bfloat16, (64, 64), (8, 0), "bfloat16 weights under trainer.fp16"),
        ("flash4", torch.bfloat16, torch.bfloat16, (192, 128), (9, 0), None),
        ("flash4", torch.bfloat16, torch.bfloat16, (60, 60), (10, 0), None),
        ("flash4", torch.bfloat16, torch.bfloat16, (192, 128), (10, 3), None),
        ("flash4", torch.bfloat16, torch.bfloat16, (256, 256), (10, 0), None),
        ("flash4", torch.bfloat16, torch.bfloat16, (160, 160), (10, 0), "up to 128, or of 256, .* have 160"),
        (
            "flash4",
            torch.bfloat16,
            torch.bfloat16,
            (192, 64),
            (10, 0),
            r"have 192 \(keys\) and 64 \(values\)",
        ),
        (
            "flash4",
            torch.bfloat16,
            torch.bfloat16,
            (64, 64),
            (8, 0),
            "9.0 to 11.x, and this one has 8.0: .*flash2",
        ),
        (
            "flash4",
            torch.bfloat16,
            torch.bfloat16,
            (64, 64),
            (12, 0),
            "9.0 to 11.x, and this one has 12.0: .*flash2",
        ),
    ],
)
def test_what_a_package_cannot_do_is_known_before(name, dtype, weights, widths, capability, problem):
    found = flash_problem(name, dtype, weights, widths, capability)
    assert found is None if problem is None else re.search(problem, found)


def test_another_version_of_the_beta_is_refused_by_what_it_lacks():
    """flash-attn-4's calls may change before its release."""

    def older(
        q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, softcap, max_seqlen_q, max_seqlen_k
    ):
        raise AssertionError("is not called")

    module = flash_attn_4()
    module._flash_attn_fwd = older
    with pytest.raises(UserError, match="no _flash_attn_fwd with return_lse: install flash-attn-4=="):
        load_flash("flash4", module=module)
    del module._flash_attn_fwd
    with pytest.raises(UserError, match="no _flash_attn_fwd with causal, "):
        load_flash("flash4", module=module)


def test_packages_in_one_folder_are_told_apart(tmp_path, monkeypatch):
    """flash-attn-4 lies in flash-attn's folder: either may be there alone. Nothing is imported to know."""
    folder = tmp_path / "flash_attn"
    (folder / "cute").mkdir(parents=True)
    (folder / "cute" / "interface.py").write_text("raise AssertionError('is not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert not installed("flash2") and not installed("flash3") and installed("flash4")
    (folder / "__init__.py").write_text("raise AssertionError('is not imported')")
    (folder / "flash_attn_interface.py").touch()
    (tmp_path / "flash_attn_interface.py").touch()
    importlib.invalidate_caches()
    assert installed("flash2") and installed("flash3") and installed("flash4")


def test_the_widest_head_of_a_configuration():
    """Named, or hidden size over heads; of a composite one its text model's; of latent attention keys and values."""
    llama = CONFIG_MAPPING["llama"]
    assert head_widths(llama(hidden_size=64, num_attention_heads=4)) == (16, 16)
    assert head_widths(llama(hidden_size=64, num_attention_heads=4, head_dim=40)) == (40, 40)
    gemma = CONFIG_MAPPING["gemma3"](text_config={"head_dim": 320, "num_attention_heads": 4})
    assert head_widths(gemma) == (320, 320)
    deepseek = CONFIG_MAPPING["deepseek_v3"](qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    assert head_widths(deepseek) == (192, 128)


def test_values_narrower_than_keys_reach_a_kernel_as_they_are():
    """Latent attention, keys of 24 and values of 16 numbers; and with zeros behind them, as an exchange sends them."""
    register_kernel("flash4 stand-in", load_flash("flash4", module=flash_attn_4()))
    layout = layout_of([(21, [7, 1, 5])])
    (query, key, wide), gradient = states((4, 2), layout.length, layout.length, width=24)
    value = wide.detach()[..., :16].clone().requires_grad_()
    padded = torch.nn.functional.pad(value, (0, 8))
    zeros = torch.nn.functional.pad(gradient[..., :16], (0, 8))
    expected = attend_plain(query, key, padded, layout=prepare(layout))
    wanted = torch.autograd.grad(expected, (query, key, value), zeros)
    here = partial(attend, layout=prepare(layout), kernel="flash4 stand-in")
    for output, outer in (
        (here(query, key, value), gradient[..., :16]),
        (_narrowed(here, 16)(query, key, torch.nn.functional.pad(value, (0, 8))), zeros),
    ):
        torch.testing.assert_close(output, expected[..., : output.shape[3]])
        for actual, exact in zip(
            torch.autograd.grad(output, (query, key, value), outer), wanted, strict=True
        ):
            torch.testing.assert_close(actual, exact)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", sorted(MODULES))
def test_on_a_gpu(name):
    """The real package in bf16 against fp64 on CPU."""
    if not installed(name):
        pytest.skip(f"{FLASH_MODULES[name][1]} is not installed")
    register_kernel(f"real {name}", load_flash(name))
    layout = layout_of([(300, [130, 70, 1]), (90, [200])])
    leaves, gradient = states((4, 2), layout.length, layout.length, dtype=torch.bfloat16, width=64)
    exact = [one.detach().double().requires_grad_() for one in leaves]
    expected = outcome(attend_plain, exact, gradient.double(), prepare(layout))
    there = [one.detach().cuda().requires_grad_() for one in leaves]
    way = partial(attend, kernel=f"real {name}")
    for actual, wanted in zip(outcome(way, there, gradient.cuda(), prepare(layout)), expected, strict=True):
        assert relative_error(actual.double().cpu(), wanted) <= 1e-2


@pytest.mark.parametrize("kernel", ["cpu", "capped softcap 1.5"])
def test_autocast_does_not_reach_into_a_kernel(kernel):
    """States have autocast's precision already; what a kernel computes in fp32 stays so, forward and backward."""
    layout = layout_of([(21, [7, 1, 5])])
    leaves, gradient = states((4, 2), layout.length, layout.length, dtype=torch.bfloat16)
    way = partial(attend, kernel=kernel)
    expected = outcome(way, leaves, gradient, prepare(layout))
    with torch.autocast("cpu", torch.bfloat16):
        actual = outcome(way, leaves, gradient, prepare(layout))
        asked = Asked(torch.float32, (64, 64), 3)
        assert problem_on(torch.device("cpu"), "cpu", asked) is None  # held to fp32's rounding
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))
