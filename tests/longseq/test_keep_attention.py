"""Checkpointing that keeps attention: how often kernels run, what stays alive, and what it refuses."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.keep_attention import ATTENTION_OPS
from align.longseq.memory import apply_checkpointing
from tests.longseq.plain import make_example
from tests.tiny import tiny_model


class CountAttention(TorchDispatchMode):
    """Counts the attention kernels that really run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in ATTENTION_OPS
        return func(*args, **(kwargs or {}))


def build(mode: str) -> torch.nn.Module:
    model = tiny_model()
    model.set_attn_implementation(ATTENTION)
    apply_checkpointing(model, mode)
    return model.train()


def chosen_sum(model: torch.nn.Module) -> torch.Tensor:
    """One prompt and two answers: three attention calls a layer."""
    return pair_logps(
        model, pack([make_example(np.random.default_rng(0), prompt=9, answers=[4, 3])])
    ).chosen.sum()


@pytest.mark.parametrize(("mode", "runs"), [("none", 6), ("full", 12), ("keep_attention", 6)])
def test_attention_runs_forward(mode, runs):
    """2 layers × 3 calls; `full` runs all of them again before the backward pass, `keep_attention` none."""
    with CountAttention() as counter:
        chosen_sum(build(mode)).backward()
    assert counter.count == runs


def test_nothing_outlives_the_backward_pass():
    """No tensor of a layer's shape remains, collected or not: kept outputs do not keep themselves alive."""
    model = build("keep_attention")
    chosen_sum(model).backward()
    gc.collect()
    shape = (1, 16, 64)  # [1, T, hidden] with T = 9 + 4 + 3
    alive = [value for value in gc.get_objects() if type(value) is torch.Tensor and value.shape == shape]
    assert not alive


def test_a_second_backward_pass_is_refused():
    loss = chosen_sum(build("keep_attention"))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward only once"):
        loss.backward()
