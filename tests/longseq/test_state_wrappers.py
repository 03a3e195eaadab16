"""Layers that keep a state inside wrappers that gather weights: all processes have to run mixers equally often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from torch import nn

from tests.distributed import run_distributed
from tests.longseq.sharded import Case
from tests.longseq.stateful import float64_throughout, in_float64, state_model
from tests.longseq.wrapped import worker

# Of float64; a wrong factor gives 1.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class StateCase(Case):
    """As `Case`, with a model of which layers keep a state."""

    kind: str = "qwen3_next"

    def build(self, attention: str) -> nn.Module:
        model: Any = in_float64(state_model(self.kind, **self.model))
        model.set_attn_implementation(attention)
        return model.train()


# Process 0 reads two rows, of 4 and 3 spans, while process 1 reads one of 6.
ROWS = ((20, (7, 3, 4)), (12, (5, 6)), (18, (2, 4)), (10, (8, 1)))
DENSE = {"num_experts": 0}
CASES = {
    "plain": StateCase(rows=ROWS, tokens_per_row=45, model=DENSE),
    "full": StateCase(rows=ROWS, tokens_per_row=45, model=DENSE, checkpointing="full"),
    "tiled": StateCase(rows=ROWS, tokens_per_row=45, model=DENSE, checkpointing="full", mlp_chunk=9),
}
# Whose model hands its layers no layout.
ALONE = {
    "full": StateCase(rows=ROWS, tokens_per_row=45, kind="mamba2", plain="eager", checkpointing="full"),
}
WHOLE = {"full": StateCase(rows=ROWS, tokens_per_row=45, model={"num_experts": 1}, kind="jamba")}


def float64_worker(rank: int, size: int, wrapper: str, cases: dict[str, Case]) -> dict[Any, Any]:
    """The cases on as many data-parallel processes, all in float64."""
    with float64_throughout():
        return worker(rank, size, [wrapper], cases, 1, ("none",))


def test_rows_are_unlike():
    rows = [CASES["full"].batch(rank, 2).rows for rank in (0, 1)]
    spans = [[sum(1 + len(packed.answers) for packed in row.layout.prompts) for row in own] for own in rows]
    assert spans == [[4, 3], [6]]


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2", "zero3"])
@pytest.mark.parametrize("cases", [CASES, WHOLE, ALONE], ids=["qwen3_next", "jamba", "mamba2"])
def test_processes_with_unlike_numbers_of_answers(wrapper, cases):
    if wrapper == "zero3":
        pytest.importorskip("deepspeed")
    for found in run_distributed(float64_worker, 2, wrapper, cases, timeout=200):
        assert len(found) == len(cases)
        for cell, errors in found.items():
            for what, error in errors.items():
                assert error <= TOLERANCE, f"{cell}: {what} off by {error:.2e}"
