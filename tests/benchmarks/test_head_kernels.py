"""The comparison of heads on a CPU: ours is the reference, and a fused head's call contract is held by stand-ins."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from benchmarks import head_kernels
from benchmarks.head_kernels import compare_heads, draw, heads

CPU = torch.device("cpu")


@pytest.mark.parametrize("trains", [False, True])
def test_ours_in_fp32_is_the_reference_itself(trains):
    states, weight, targets = draw(24, 16, 50, device=CPU, dtype=torch.float32)
    (cost,) = compare_heads(states, weight.requires_grad_(trains), targets, slices=3, rounds=1)
    assert (cost.name, cost.peak_bytes, cost.repeats) == ("ours", None, True)
    assert cost.seconds > 0
    assert cost.logps_error == cost.states_error == 0
    assert cost.weight_error == (0 if trains else None)


def test_ours_in_bf16_is_off_by_rounding():
    states, weight, targets = draw(24, 16, 50, device=CPU, dtype=torch.bfloat16)
    (cost,) = compare_heads(states, weight.requires_grad_(), targets, slices=3, rounds=1)
    assert 0 < cost.logps_error < 0.1
    assert 0 < cost.states_error < 0.02 and cost.weight_error is not None and 0 < cost.weight_error < 0.02


class _LigerLoss:
    """`LigerFusedLinearCrossEntropyLoss` of liger-kernel 0.8.5: the weight comes first."""

    def __init__(self, *, reduction, accum_dtype):
        assert (reduction, accum_dtype) == ("none", torch.float32)

    def __call__(self, lin_weight, _input, target, bias=None):
        return F.cross_entropy((_input @ lin_weight.T).float(), target, reduction="none")


def _cut(e, c, targets, *, reduction, filter_eps):
    """`linear_cross_entropy` of cut-cross-entropy 25.1.1."""
    assert reduction == "none" and filter_eps in (None, "auto")
    return F.cross_entropy((e @ c.T).float(), targets, reduction="none")


def test_fused_heads_are_called_as_their_packages_document(monkeypatch):
    liger, cut = ModuleType("liger_kernel.transformers"), ModuleType("cut_cross_entropy")
    liger.LigerFusedLinearCrossEntropyLoss = _LigerLoss  # type: ignore[attr-defined]
    cut.linear_cross_entropy = _cut  # type: ignore[attr-defined]
    package = ModuleType("liger_kernel")
    for module in (package, liger, cut):
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    found = heads(torch.device("cuda"), slices=2)
    assert list(found) == ["ours", "liger", "cut_cross_entropy", "cut_cross_entropy, filtered"]
    states, weight, targets = draw(12, 8, 20, device=CPU, dtype=torch.float32)
    expected = (states @ weight.T).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    for head in found.values():
        torch.testing.assert_close(head(states, weight, targets), expected)


def test_a_file_names_device_and_sizes(monkeypatch, tmp_path, capsys):
    file = tmp_path / "head.json"
    words = ["--tokens", "16", "--width", "8", "--vocabulary", "40", "--slices", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["head_kernels", *words])
    head_kernels.main()
    written = json.loads(file.read_text())
    assert (written["tokens"], written["vocabulary"], written["slices"]) == (16, 40, 2)
    assert [way["name"] for way in written["ways"]] == [
        json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()
    ]
