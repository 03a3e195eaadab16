"""Offloaded tensors: what comes back, what is left behind, and what happens on a full disk."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from align.core.errors import UserError
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.logps import token_logps
from align.longseq.offload import DiskStore, HostStore
from tests.longseq.test_offload import send
from tests.tiny import tiny_model


@pytest.mark.parametrize("make", [DiskStore, HostStore])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_come_back_in_the_opposite_order(make, dtype):
    store = make()
    sent = [torch.randn(1, 80, 40 + i).to(dtype) for i in range(6)]
    packed = [send(store, tensor) for tensor in sent]
    for tensor, stored in reversed(list(zip(sent, packed, strict=True))):
        assert not isinstance(stored, torch.Tensor)
        assert torch.equal(store.unpack(stored), tensor)


def test_a_tensor_that_is_not_contiguous_and_one_that_is_small():
    store = DiskStore()
    turned = torch.randn(60, 50).t()
    stored = [send(store, turned), send(store, torch.randn(50, 50))]
    assert stored[0].place.tensor is None
    assert torch.equal(store.unpack(stored[0]), turned)
    small = torch.randn(7)
    assert send(store, small) is small


def test_a_tensor_leaves_memory_and_its_room_is_given_back(tmp_path):
    store = DiskStore(tmp_path)
    stored = [send(store, torch.randn(50, 50)) for _ in range(3)]
    stored[-1].place.written.result()
    assert [each.place.tensor is None for each in stored] == [True, True, False]  # the last is needed first
    assert os.fstat(store._file.fileno()).st_size == 3 * 50 * 50 * 4
    assert list(tmp_path.iterdir()) == []  # the file has no name
    del stored
    gc.collect()
    store._thread.submit(int).result()
    gc.collect()
    assert os.fstat(store._file.fileno()).st_size == 0


def test_a_full_disk_ends_in_one_sentence():
    """A limit on the size of a file stands for the disk's (EFBIG for ENOSPC)."""
    script = (
        "import resource, signal, torch\n"
        "from align.core.errors import UserError\n"
        "from align.longseq.offload import DiskStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "store = DiskStore()\n"
        "try:\n"
        "    kept = []\n"
        "    for _ in range(4):\n"
        "        with store.hooks():\n"
        "            kept.append(store.pack(torch.zeros(10_000)))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert "is full: the checkpoints of a step need more than the 0.0 GB that were free" in done.stdout, (
        done.stderr
    )


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(UserError, match="/proc cannot be written"):
        DiskStore(Path("/proc"))


def test_a_missing_folder_and_a_lever_without_checkpointing_are_refused():
    with pytest.raises(UserError, match="is not a folder"):
        apply_checkpointing(tiny_model(), "full", offload="disk", offload_folder="/nowhere")
    with pytest.raises(UserError, match="works on checkpointed layers"):
        apply_checkpointing(tiny_model(), "none", mlp_chunk=8)


def test_log_probs_have_the_gradient_that_autograd_gives():
    """In fp64 against log_softmax; twice through the same graph, since the backward pass overwrites logits."""
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 11).double()
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 11, (7,))
    weight = torch.randn(7, dtype=torch.float64)
    inputs = [hidden, *head.parameters()]
    plain = head(hidden).log_softmax(-1).gather(-1, target[:, None])[:, 0]
    expected = torch.autograd.grad((plain * weight).sum(), inputs)
    ours = token_logps(head, hidden, target, slices=3)
    torch.testing.assert_close(ours, plain)
    for keep in (True, False):
        found = torch.autograd.grad((ours * weight).sum(), inputs, retain_graph=keep)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
