"""Checkpointing that keeps attention: how often kernels run, what stays alive, and what it refuses."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from align.longseq import ATTENTION, choice, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.keep_attention import ATTENTION_OPS
from align.longseq.kernels import CpuKernel, kernel_named, register_kernel
from align.longseq.parallel import SequenceParallel, start_parallel
from align.models.settings import LIBRARY
from align.models.structure import set_reading
from tests.distributed import run_distributed
from tests.longseq.plain import make_example
from tests.tiny import tiny_model


class Counting(CpuKernel):
    """Counts how often the kernel really runs forward."""

    runs = 0

    def forward(self, *arguments: Any) -> Any:
        self.runs += 1
        return super().forward(*arguments)


def kernel_runs(step: Callable[[], None]) -> int:
    """Runs of the forward kernel in `step`."""
    usual, counting = kernel_named("cpu"), Counting()
    register_kernel("cpu", counting)
    try:
        step()
    finally:
        register_kernel("cpu", usual)
    return counting.runs


def build(mode: str) -> torch.nn.Module:
    model = tiny_model()
    model.set_attn_implementation(ATTENTION)
    apply_checkpointing(model, mode)
    return model.train()


def chosen_sum(model: torch.nn.Module, parallel: SequenceParallel | None = None) -> torch.Tensor:
    """One prompt and two answers."""
    batch = pack([make_example(np.random.default_rng(0), prompt=9, answers=[4, 3])])
    return pair_logps(model, batch, parallel=parallel).chosen.sum()


@pytest.mark.parametrize(("mode", "runs"), [("none", 8), ("full", 16), ("keep_attention", 8)])
def test_attention_runs_forward(mode, runs):
    """2 layers × (3 squares + the rectangle of both answers over the prompt); `full` runs all of them again."""
    assert kernel_runs(lambda: chosen_sum(build(mode)).backward()) == runs


def sharded_runs(rank: int, size: int) -> dict[tuple[str, str], int]:
    """The same for one rank's shard under both exchanges."""
    found = {}
    for kind in ("ulysses", "gather"):
        parallel = start_parallel(kind, size)
        for mode in ("none", "full", "keep_attention"):
            model = build(mode)
            found[kind, mode] = kernel_runs(lambda: chosen_sum(model, parallel).backward())  # noqa: B023
    return found


def test_attention_is_not_run_again_on_shards():
    """Every rank: recomputation doubles the kernel's runs, keeping attention takes them away."""
    for found in run_distributed(sharded_runs, 2):
        for kind in ("ulysses", "gather"):
            assert found[kind, "keep_attention"] == found[kind, "none"] > 0
            assert found[kind, "full"] == 2 * found[kind, "none"]


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


class Operators(TorchDispatchMode):
    """Counts runs of torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.runs += func in ATTENTION_OPS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("attention", ["sdpa", ATTENTION], ids=["the library's", "the plain way of ours"])
def test_attention_by_torchs_operators_is_kept_too(attention, monkeypatch):
    """A row for each answer through the library's attention; and where no kernel gives its log-sum-exp."""
    monkeypatch.setattr(choice, "torchs_kernel", lambda *asked: None)
    runs, gradients = {}, {}
    for mode in ("none", "full", "keep_attention"):
        model = tiny_model()
        model.set_attn_implementation(attention)
        set_reading(model, LIBRARY)
        apply_checkpointing(model.train(), mode)
        with Operators() as seen:
            chosen_sum(model).backward()
        runs[mode], gradients[mode] = seen.runs, model.model.layers[0].self_attn.q_proj.weight.grad
    assert runs["keep_attention"] == runs["none"] > 0 and runs["full"] > runs["none"]
    assert torch.equal(gradients["keep_attention"], gradients["none"])
