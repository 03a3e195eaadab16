"""Every wrapper around the sharded step: loss, gradients and three clipped SGD steps as in one process.

The wrappers are not told of sequence parallelism. Each averages over the whole world, and each worker asserts
which wrapper it runs in (`tests/longseq/wrapped.py`).
"""

from __future__ import annotations

import pytest

from align.longseq import ATTENTION
from tests.distributed import HangError, run_distributed
from tests.longseq.sharded import Case
from tests.longseq.wrapped import CASES, GROUPS, KINDS, PATTERNS, TILED, TOLERANCES, WRAPPERS, worker


def assert_table(wrappers: list[str], cases: dict[str, Case], *, degree: int, size: int) -> None:
    """Runs the cells and holds each against the tolerances."""
    for found in run_distributed(worker, size, wrappers, cases, degree, timeout=300):
        assert len(found) == len(wrappers) * len(cases) * len(KINDS)
        for cell, errors in found.items():
            for what, error in errors.items():
                assert error <= TOLERANCES[what], f"{cell}: {what} off by {error:.2e}"


@pytest.mark.parametrize("wrapper", ["none", "ddp", "fsdp2"])
def test_wrapper_at_degree_two(wrapper):
    assert_table([wrapper], CASES, degree=2, size=2)


@pytest.mark.slow
@pytest.mark.parametrize("degree", [2, 3, 4])
def test_every_wrapper_at_every_degree(degree):
    """The whole table, as `benchmarks/parity.py` prints it."""
    pytest.importorskip("deepspeed")
    assert_table(list(WRAPPERS), CASES, degree=degree, size=degree)


def test_windows_and_sinks():
    assert_table(["fsdp2"], PATTERNS, degree=2, size=2)


@pytest.mark.slow
@pytest.mark.parametrize("degree", [2, 3])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_windows_and_sinks_in_every_wrapper(wrapper, degree):
    pytest.importorskip("deepspeed")
    assert_table([wrapper], PATTERNS, degree=degree, size=degree)


def test_tiles_and_offload():
    assert_table(["fsdp2"], TILED, degree=2, size=2)


@pytest.mark.slow
@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_tiles_and_offload_in_every_wrapper(wrapper, degree):
    pytest.importorskip("deepspeed")
    assert_table([wrapper], TILED, degree=degree, size=degree)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_tiles_and_offload_with_data_parallel_in_every_wrapper(wrapper):
    pytest.importorskip("deepspeed")
    assert_table([wrapper], TILED, degree=2, size=4)


@pytest.mark.parametrize("wrapper", ["fsdp2"])
def test_data_parallel_with_sequence_parallel(wrapper):
    """Groups with unequally many rows: the shorter one makes empty calls, without which FSDP2 would hang."""
    first, second = (len(GROUPS["full"].batch(rank, 2).rows) for rank in (0, 1))
    assert (first, second) == (1, 2)
    assert_table([wrapper], GROUPS, degree=2, size=4)


@pytest.mark.slow
def test_data_parallel_with_sequence_parallel_in_every_wrapper():
    pytest.importorskip("deepspeed")
    assert_table(list(WRAPPERS), GROUPS, degree=2, size=4)


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
    assert ATTENTION == "align_shared"
    assert len(CASES["full"].batch().rows) == 2
