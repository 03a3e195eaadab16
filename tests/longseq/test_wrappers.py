"""Every wrapper around the sharded step: loss, gradients and three clipped SGD steps as in one process.

The wrappers are not told of sequence parallelism. Each averages over the whole world, and each worker asserts
which wrapper it runs in (`tests/longseq/wrapped.py`).
"""

from __future__ import annotations

import pytest

from align.longseq import ATTENTION
from align.longseq.parallel import start_parallel
from tests.distributed import HangError, run_distributed
from tests.longseq.sharded import Case
from tests.longseq.wrapped import WRAPPERS, plain_training, wrapped_errors

KINDS = ("ulysses", "gather")
# Rounding of fp32 weights (2⁻²⁴ of 0.2) beside updates of about 1e-4 each; a wrong factor gives 1.
TOLERANCES = {"loss": 1e-5, "gradient": 1e-5, "weights": 1e-5, "update": 1e-3}
# Several rows a step, scored tokens spread unequally, so that ranks own unequal numbers of head chunks.
ROWS = ((40, (7, 3, 5)), (9, (2, 8, 1)))
FULL = Case(heads=(3, 1), rows=ROWS, tokens_per_row=60, nll_scope="sequence", checkpointing="full")
LORA = Case(heads=(3, 1), rows=ROWS, tokens_per_row=60, lora=True, checkpointing="keep_attention")
# Two data-parallel groups of two prompts each: the first packs both into one row, the second needs two.
UNEQUAL = ((20, (7, 3)), (40, (5, 6)), (18, (2, 4)), (30, (8, 2)))
GROUPS = {
    "full": Case(rows=UNEQUAL, tokens_per_row=60, checkpointing="full"),
    "LoRA": Case(rows=UNEQUAL, tokens_per_row=60, checkpointing="full", lora=True),
}


def worker(
    rank: int, size: int, wrappers: list[str], cases: dict[str, Case], degree: int
) -> dict[tuple[str, str, str], dict[str, float]]:
    """Every wrapper × case × exchange."""
    expected = {name: plain_training(case) for name, case in cases.items()}
    return {
        (wrapper, name, kind): wrapped_errors(wrapper, case, parallel, expected[name], size // degree)
        for kind in KINDS
        for parallel in [start_parallel(kind, degree)]
        for name, case in cases.items()
        for wrapper in wrappers
    }


def assert_table(wrappers: list[str], cases: dict[str, Case], *, degree: int, size: int) -> None:
    """Runs the cells and holds each against the tolerances."""
    for found in run_distributed(worker, size, wrappers, cases, degree, timeout=300):
        assert len(found) == len(wrappers) * len(cases) * len(KINDS)
        for cell, errors in found.items():
            for what, error in errors.items():
                assert error <= TOLERANCES[what], f"{cell}: {what} off by {error:.2e}"


@pytest.mark.parametrize("wrapper", ["none", "ddp", "fsdp2"])
def test_wrapper_at_degree_two(wrapper):
    assert_table([wrapper], {"full": FULL, "LoRA": LORA}, degree=2, size=2)


@pytest.mark.slow
@pytest.mark.parametrize("degree", [2, 3, 4])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapper_at_every_degree(wrapper, degree):
    skip_without_library(wrapper)
    assert_table([wrapper], {"full": FULL, "LoRA": LORA}, degree=degree, size=degree)


@pytest.mark.parametrize("wrapper", ["fsdp2"])
def test_data_parallel_with_sequence_parallel(wrapper):
    """Groups with unequally many rows: the shorter one makes empty calls, without which FSDP2 would hang."""
    first, second = (len(GROUPS["full"].batch(rank, 2).rows) for rank in (0, 1))
    assert (first, second) == (1, 2)
    assert_table([wrapper], GROUPS, degree=2, size=4)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_data_parallel_with_sequence_parallel_in_every_wrapper(wrapper):
    skip_without_library(wrapper)
    assert_table([wrapper], GROUPS, degree=2, size=4)


def skip_without_library(wrapper: str) -> None:
    if wrapper.startswith("zero"):
        pytest.importorskip("deepspeed")


def sleeper(rank: int, size: int) -> None:
    """Rank 0 waits for a message that nobody sends."""
    import torch
    import torch.distributed as dist

    if rank == 0:
        dist.recv(torch.zeros(1), src=1)
    else:
        import time

        time.sleep(60)


def test_the_harness_ends_a_hang():
    with pytest.raises(HangError, match="sleeper on 2 processes did not end within 3 s"):
        run_distributed(sleeper, 2, timeout=3)


def test_the_harness_returns_what_each_rank_returned():
    assert run_distributed(double, 3, 10) == [10, 12, 14]


def double(rank: int, size: int, start: int) -> int:
    return start + 2 * rank


def test_cases_are_what_the_docstrings_say():
    assert ATTENTION == "align_sdpa"
    assert len(FULL.batch().rows) == 2
