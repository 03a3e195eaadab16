"""What processes tell each other on the host: numbers of any count, digests, and how often they call a model."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.nn.parallel import DistributedDataParallel

from align.distributed.agreement import SameRows, agree_on_calls, check_agreement, check_same_settings
from align.distributed.host import gather_numbers, host_group, sum_numbers
from tests.distributed import run_distributed

LARGE = 2**63 - 1  # digests take all of 64 bits


def exchanged(rank: int, size: int) -> dict:
    """Both ranks' numbers, few and more than fit into one message; sums; agreement."""
    many = list(range(rank, 200))
    return {
        "few": gather_numbers([-LARGE] if rank else [5, LARGE]),
        "none": gather_numbers([] if rank else [1]),
        "many": [len(numbers) for numbers in gather_numbers(many)] + [gather_numbers(many)[1][-1]],
        "sums": sum_numbers([rank + 1, 10]),
        "own group": host_group(dist.group.WORLD) is dist.group.WORLD,
    }


def on_groups_of_a_gpu(rank: int, size: int) -> dict:
    """The same in groups that take tensors of a GPU alone, as NCCL's do."""
    group = dist.new_group([0, 1], backend="cuda:gloo")
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        dist.all_reduce(torch.ones(1), group=group)
    assert host_group(group) is host_group(group)
    assert host_group(group) is not group
    check_agreement({"degree": 2}, group, what="settings")
    return {
        "few": gather_numbers([-LARGE] if rank else [5, LARGE], group),
        "sums": sum_numbers([rank + 1, 10], group),
    }


def test_numbers_of_every_process():
    """In the order of ranks, each as many as it gave."""
    expected = {
        "few": [[5, LARGE], [-LARGE]],
        "none": [[1], []],
        "many": [200, 199, 199],
        "sums": [3, 20],
        "own group": True,
    }
    assert run_distributed(exchanged, 2) == [expected, expected]


def test_groups_of_a_gpu_get_one_of_the_host():
    expected = {"few": [[5, LARGE], [-LARGE]], "sums": [3, 20]}
    assert run_distributed(on_groups_of_a_gpu, 2) == [expected, expected]


def calls_of(rank: int, size: int) -> dict:
    """Rank 0 has calls of 3 and 2 slices, rank 1 a single one of 4; they share rows with nobody, or with each other."""
    own = [(3, 40), (2, 90)] if rank == 0 else [(4, 60)]
    plain = nn.Linear(1, 1)
    wrapped = DistributedDataParallel(nn.Linear(1, 1))
    same = SameRows(dist.group.WORLD, 7)
    return {
        "plain": agree_on_calls(plain, own),
        "plain, rows shared": agree_on_calls(plain, own, same=same),
        "wrapped": agree_on_calls(wrapped, own),
        "wrapped, rows shared": agree_on_calls(wrapped, own, same=same),
    }


def test_calls_are_as_many_as_anybodys():
    """Only where calling the model involves others; comparing rows on the way changes nothing."""
    agreed = [(4, 60), (2, 90)]
    expected = {"plain": None, "plain, rows shared": None, "wrapped": agreed, "wrapped, rows shared": agreed}
    assert run_distributed(calls_of, 2) == [expected, expected]


def other_rows(rank: int, size: int, wrap: bool) -> None:
    """The groups 0, 1 and 2, 3 share rows; process 3 comes with other ones than 2."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    model = DistributedDataParallel(nn.Linear(1, 1)) if wrap else nn.Linear(1, 1)
    agree_on_calls(model, [(1,)], same=SameRows(groups[rank // 2], (5, 5, -1, 255)[rank]))
    if rank > 1:
        raise AssertionError("went on with rows of somebody else")


@pytest.mark.parametrize("wrap", [False, True])
def test_other_rows_are_found_in_their_group(wrap):
    """By the ranks of the world, whether the group alone exchanged digests or everybody did."""
    said = r"Processes 2 and 3 came with different rows \(ffffffffffffffff against 00000000000000ff\)"
    with pytest.raises(ProcessRaisedException, match=said):
        run_distributed(partial(other_rows, wrap=wrap), 4)


def other_settings(rank: int, size: int) -> None:
    check_same_settings({"parallel": {"degree": 2, "kind": "gather"}, "seed": rank})


def test_other_settings_are_named():
    with pytest.raises(ProcessRaisedException, match=r"different settings \(seed=0 against seed=1\)"):
        run_distributed(other_settings, 2)
