"""liger-kernel's own kernels against the plain modules, where it is installed; with a stand-in: test_kernels.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from align.models.kernels import FAMILIES, fuse
from tests.longseq.plain import assert_close, relative_error
from tests.models.fused import assert_counts, family_model, loss_of, step

ROOT = Path(__file__).parents[2]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.mark.slow
def test_interpreted_kernels_give_the_plain_step():
    """Every family in fp32, as a whole and in tiles of a checkpointed layer; a minute."""
    pytest.importorskip("triton")
    pytest.importorskip("liger_kernel")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.models.interpreted", *FAMILIES],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert [line["family"] for line in lines] == [family for family in FAMILIES for _ in range(2)]
    for line in lines:
        assert_counts(line["family"], line["counts"], layers=2)
        assert line["loss"] <= 1e-5
        assert max(line["gradients"].values()) <= 1e-5, line


@pytest.fixture
def _gpu():
    pytest.importorskip("liger_kernel")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.mark.gpu
@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_gives_the_plain_step_in_fp32(family):
    plain, fused = family_model(family).cuda(), family_model(family).cuda()
    assert_counts(family, fuse(fused), layers=2)
    (loss, found), (plain_loss, expected) = step(fused), step(plain)
    assert relative_error(loss, plain_loss) <= BOUNDS[torch.float32]
    assert_close(found, expected, tolerance=BOUNDS[torch.float32])


@pytest.mark.gpu
@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_part_on_a_gpu(family, dtype):
    """Norm and MLP by themselves, on what comes into the plain model's: output, and gradients of states and weights."""
    plain, fused = (family_model(family).to("cuda", dtype) for _ in range(2))
    fuse(fused)
    olds, seen = dict(plain.named_modules()), 0
    for name, module in fused.named_modules():
        if not type(module).__name__.startswith("Liger"):
            continue
        width = getattr(module, "weight", None)
        size = plain.config.get_text_config().hidden_size if width is None else len(width)
        states = torch.randn(2, 33, size, device="cuda", dtype=dtype, requires_grad=True)
        upstream = torch.randn_like(states)
        outcomes = []
        for part in (module, olds[name]):
            output = part(states)
            inputs = [states, *part.parameters()]
            outcomes.append([output, *torch.autograd.grad(output, inputs, upstream)])
        for actual, expected in zip(*outcomes, strict=True):
            assert relative_error(actual.float(), expected.float()) <= BOUNDS[dtype], name
        seen += 1
    assert seen


@pytest.mark.gpu
@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_step_in_bf16_is_no_farther_from_fp32_than_the_plain_one(family):
    """Two computations in bfloat16 differ by their rounding: both are held against fp32."""
    _, exact = step(family_model(family).cuda())

    def distance(model: torch.nn.Module) -> float:
        _, found = step(model.cuda().bfloat16())
        squares = [((found[name].float() - exact[name]).norm() / exact[name].norm()) ** 2 for name in exact]
        return float(sum(squares) / len(squares)) ** 0.5

    fused = family_model(family)
    fuse(fused)
    assert distance(fused) <= 1.5 * distance(family_model(family))


@pytest.mark.gpu
@pytest.mark.usefixtures("_gpu")
def test_two_models_with_the_same_weights_give_the_same_log_probs_on_a_gpu():
    """To the last bit, so that a margin is 0 at step 0: in training with a gradient, in evaluation without."""
    policy, reference = (family_model("qwen3").to("cuda", torch.bfloat16) for _ in range(2))
    fuse(policy)
    fuse(reference)
    with torch.no_grad():
        expected = loss_of(reference.eval())
    assert torch.equal(loss_of(policy.train()).detach(), expected)
