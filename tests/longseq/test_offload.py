"""The order of copies, computation and reuse of memory when layers' inputs are moved, and that gradients stay equal.

Order is tested on a device that puts off what it is told as long as it may (streams.py), gradients on one that works
at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import save_on_cpu

from align.core.errors import UserError
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import CHECKPOINTING, LayerCheckpoint, apply_checkpointing
from align.longseq.lanes import Arrival, HostCopy, StreamLane
from align.longseq.offload import DiskStore, HostStore
from align.longseq.settings import MemorySettings
from align.longseq.store import Store
from align.longseq.streams import DeviceStreams
from tests.longseq.plain import assert_close, gradients, make_example
from tests.longseq.streams import Event, LateStreams
from tests.tiny import tiny_model

SLAB = 4096  # bytes; a layer's input here has 4608 or more
LAYERS = 6

Build = Callable[..., Store]


def store_on(device: LateStreams, build: Build, lane: type[StreamLane] = StreamLane, **ways: Any) -> Store:
    return build(lanes=lambda _: lane(device, slab=SLAB), **ways)


def send(store: Store, tensor: torch.Tensor) -> Any:
    """As one layer's."""
    with store.hooks():
        return store.pack(tensor)


def steps(device: LateStreams, store: Store, count: int = 3) -> list[bool]:
    """Training in short: inputs are made, sent and dropped, then fetched in the opposite order and read.

    Rows are of different lengths, and after each layer memory is taken, written over and given back.

    Returns:
        Of each input whether what was read is what had been written.
    """
    verdicts = []
    for step in range(count):
        shape = torch.Size((1, 72 + 30 * (step % 2), 16))
        found: list[set[int]] = []
        stored = []
        for layer in range(LAYERS):
            hidden = device.empty(shape, torch.float32)
            device.fill(hidden, 1 + layer + LAYERS * step)
            stored.append(send(store, hidden))
            del hidden
            overwrite(device, shape)
        while stored:
            hidden = store.unpack(stored.pop())
            device.look(hidden, found)
            del hidden
            overwrite(device, shape)
        device.run()
        verdicts += [
            values == {1 + layer + LAYERS * step}
            for layer, values in zip(reversed(range(LAYERS)), found, strict=True)
        ]
    return verdicts


def overwrite(device: LateStreams, shape: torch.Size) -> None:
    """What a layer does with memory that is free."""
    for _ in range(2):
        device.fill(device.empty(shape, torch.float32), 255)


@pytest.mark.parametrize("build", [HostStore, DiskStore])
@pytest.mark.parametrize("prefetch", [0, 1, 2, 9])
def test_what_comes_back_is_what_was_sent_in_any_order_that_events_allow(build, prefetch):
    for seed in range(15):
        device = LateStreams(seed)
        assert all(steps(device, store_on(device, build, prefetch=prefetch)))


class ReusesTooEarly(StreamLane):
    """Gives memory back while it is copied."""

    def let_go(self, copy: HostCopy) -> None:
        copy.source = None


class UsesTooEarly(StreamLane):
    """Computes with what has not arrived."""

    def arrive(self, arrival: Arrival) -> torch.Tensor:
        assert arrival.tensor is not None
        return arrival.tensor


class LandsTooEarly(StreamLane):
    """Copies to memory that the compute stream has not left."""

    def back(self, copy: HostCopy, arrival: Arrival) -> None:
        arrival.event = Event(done=True)
        super().back(copy, arrival)


class FillsTooEarly(StreamLane):
    """Takes slabs again that are still copied from."""

    def free(self, copy: HostCopy) -> None:
        super().free(copy)
        for slab in self._free:
            slab.event = None


class WritesTooEarly(StreamLane):
    """Writes what has not been copied out."""

    def read(self, copy: HostCopy) -> list[torch.Tensor]:
        return copy.pieces


@pytest.mark.parametrize(
    ("lane", "build"),
    [
        (ReusesTooEarly, HostStore),
        (UsesTooEarly, HostStore),
        (LandsTooEarly, HostStore),
        (FillsTooEarly, DiskStore),
        (WritesTooEarly, DiskStore),
    ],
)
def test_each_wait_is_needed(lane, build):
    """Without it some order of the streams gives other values: the test above would have seen it."""
    found: list[bool] = []
    for seed in range(60):
        if all(found):
            device = LateStreams(seed)
            found += steps(device, store_on(device, build, lane))
    assert not all(found)


@pytest.mark.parametrize("prefetch", [0, 1, 2, 3])
def test_the_depth_bounds_what_is_on_the_device(prefetch):
    """In the backward pass the input of the layer at work and `prefetch` more; in the forward pass no more."""
    device = LateStreams()
    store = store_on(device, HostStore, prefetch=prefetch)
    stored = []
    for _ in range(LAYERS):
        stored.append(send(store, device.empty(torch.Size((1, 72, 16)), torch.float32)))
        assert device.live <= max(1, prefetch) + 1
    assert device.live == max(1, prefetch)
    device.most = 0
    while stored:
        hidden = store.unpack(stored.pop())
        on_the_way = [one.place.arrival is not None or one.place.tensor is not None for one in stored]
        assert sum(on_the_way) == min(prefetch, len(stored))
        assert on_the_way == sorted(on_the_way)  # the next ones
        del hidden
    assert device.most <= prefetch + 1
    assert device.live == 0


def test_the_host_waits_for_nothing_and_copies_run_beside_the_computation():
    device = LateStreams()
    store = store_on(device, HostStore)
    shape = torch.Size((1, 72, 16))
    stored = [send(store, device.empty(shape, torch.float32)) for _ in range(LAYERS)]
    device.run()
    never = Event()
    device.wait(device.compute, never)  # a layer that does not end
    device.run()
    # Forward: the input of a layer that computes is copied out meanwhile.
    before = send(store, device.empty(shape, torch.float32))
    assert not before.place.copy.done.done  # it is made by what has not ended
    never.done = True
    device.run()
    assert before.place.copy.done.done
    del before
    # Backward: while layer 5 computes, the input of layer 3 comes (that of 4 came before).
    for layer in (5, 4):
        device.look(store.unpack(stored[layer]), [])
    device.run()
    never = Event()
    device.wait(device.compute, never)
    device.run()
    assert device.compute.todo
    assert stored[3].place.arrival.event.done
    assert device.synchronised == 0


@pytest.mark.parametrize("build", [HostStore, DiskStore])
def test_what_is_dropped_unread_is_not_overwritten_while_copies_run(build):
    """A step that ends early, as after an error: what is on its way out or back keeps its memory until it is there."""
    shape = torch.Size((1, 72, 16))
    for seed in range(20):
        device = LateStreams(seed)
        store = store_on(device, build, prefetch=2)
        for step in range(3):
            stored = [send(store, device.empty(shape, torch.float32)) for _ in range(LAYERS)]
            for _ in range(step):
                store.unpack(stored.pop())
            stored.clear()
            if isinstance(store, DiskStore):
                store._thread.submit(int).result()
            kept = device.empty(shape, torch.float32)
            device.fill(kept, 7)
            found: list[set[int]] = []
            device.look(kept, found)
            device.run()
            device.look(kept, found)
            device.run()
            assert found == [{7}, {7}]
            del kept
        assert device.live == 0


def test_pinned_memory_is_reused_and_does_not_grow():
    """As many slabs as the longest row takes: 6 layers of 102 · 64 bytes are 2 slabs each."""
    device, lanes = LateStreams(), []

    def lane(_: Any) -> StreamLane:
        lanes.append(StreamLane(device, slab=SLAB))
        return lanes[0]

    store = HostStore(lanes=lane)
    counts = []
    for _ in range(3):
        steps(device, store, 2)
        counts.append(lanes[0]._slabs)
    assert counts == [2 * LAYERS] * 3


def test_a_disk_holds_pinned_memory_for_what_is_under_way_only():
    device, lanes = LateStreams(), []

    def lane(_: Any) -> StreamLane:
        lanes.append(StreamLane(device, slab=SLAB))
        return lanes[0]

    steps(device, DiskStore(lanes=lane), 4)
    assert lanes[0]._slabs <= 2 * 2  # the input that is written, and one that is made meanwhile


def test_pinned_memory_that_runs_out_is_said():
    class Full(LateStreams):
        def pinned(self, size: int) -> torch.Tensor:
            if len(self._kept) > 2:
                raise RuntimeError("CUDA error: out of memory")
            return super().pinned(size)

    store = store_on(Full(), HostStore)
    kept = [send(store, torch.zeros(1, 72, 16))]
    sentence = r"found no more than 0\.0 GB of host memory to pin .* memory\.offload=disk"
    with pytest.raises(UserError, match=sentence):
        kept.append(send(store, torch.zeros(1, 72, 16)))


def test_tensors_of_one_layer_come_back_together():
    """Gemma-4's layers take a second embedding: what was handed out is not fetched again."""
    device = LateStreams()
    store = store_on(device, HostStore)
    layers = []
    for _ in range(4):
        with store.hooks():
            layers.append(
                [store.pack(device.empty(torch.Size((1, 72, 16)), torch.float32)) for _ in range(2)]
            )
    for stored in layers[3]:
        store.unpack(stored)
    arriving = [[one.place.arrival is not None for one in stored] for stored in layers]
    assert arriving == [[False, False], [False, False], [True, True], [False, False]]


def test_a_tensor_that_was_changed_is_refused():
    store = store_on(LateStreams(eager=True), HostStore)
    tensor = torch.zeros(1, 72, 16)
    kept = [send(store, tensor)]
    tensor.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        kept.append(send(store, torch.zeros(1, 72, 16)))


class PlainStore:
    """Torch's own way to move saved tensors: copied on the compute stream, nothing overlapped."""

    def hooks(self) -> AbstractContextManager[Any]:
        return save_on_cpu()


def step_gradients(
    store: Any, *, mode: str = "full", device: str = "cpu", dtype: Any = None
) -> dict[str, Any]:
    model = tiny_model(num_hidden_layers=4).to(device, dtype)
    model.set_attn_implementation(ATTENTION)
    apply_checkpointing(model, mode)
    contexts = CHECKPOINTING[mode]
    assert contexts is not None
    model._set_gradient_checkpointing(
        enable=True, gradient_checkpointing_func=LayerCheckpoint(contexts, 16, store)
    )
    model.train()
    rng = np.random.default_rng(0)
    batch = pack([make_example(rng, prompt=40, answers=[9, 6]), make_example(rng, prompt=30, answers=[5, 4])])
    logps = pair_logps(model, batch.to(device), nll_scope="sequence")
    loss = (logps.chosen - logps.rejected[:, 0]).sum() + logps.nll.sum()
    return gradients(model, loss)


@pytest.mark.parametrize("mode", ["full", "keep_attention"])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_gradients_are_those_without(mode, prefetch):
    """To the last bit: in place, by torch's own hook, in host memory and on disk."""
    plain = step_gradients(None, mode=mode)
    others = [
        PlainStore(),
        store_on(LateStreams(eager=True), HostStore, prefetch=prefetch),
        store_on(LateStreams(eager=True), DiskStore, prefetch=prefetch),
        DiskStore(prefetch=prefetch),
    ]
    for store in others:
        found = step_gradients(store, mode=mode)
        assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_the_device_is_asked_by_the_names_that_torch_has():
    """Signatures of `torch.cuda`, which records the calls here."""
    cuda = create_autospec(torch.cuda)
    device = torch.device("cuda", 1)
    streams = DeviceStreams(device, cuda)
    stream = streams.new()
    cuda.Stream.assert_called_once_with(device)
    event = streams.record(stream)
    streams.wait(streams.current(), event)
    cuda.current_stream.assert_called_once_with(device)
    cuda.current_stream.return_value.wait_event.assert_called_once_with(event)
    target, source = torch.zeros(8), torch.arange(8.0)
    streams.copy(stream, target, source)
    cuda.stream.assert_called_once_with(stream)
    assert torch.equal(target, source)
    streams.synchronize(event)
    event.synchronize.assert_called_once_with()


def test_a_gpu_tensor_goes_out_in_slabs():
    """[1, 9000, 4096] in bf16, without values: 73,728,000 bytes are 4 slabs of 16 MiB and 6,619,136 bytes."""
    cuda = create_autospec(torch.cuda)
    device = torch.device("cuda", 0)
    with FakeTensorMode():
        lane = StreamLane(DeviceStreams(device, cuda))
        hidden = torch.empty(1, 9000, 4096, dtype=torch.bfloat16, device=device)
        copy = lane.out(hidden)
        arrival = lane.land(hidden.shape, hidden.dtype)
    assert [len(piece) for piece in copy.pieces] == [2**24] * 4 + [6_619_136]
    assert {piece.device.type for piece in copy.pieces} == {"cpu"}
    assert arrival.tensor is not None
    assert (arrival.tensor.shape, arrival.tensor.device) == (hidden.shape, device)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (MemorySettings(offload="disk", prefetch=-1), "memory.prefetch=-1 must be a number of layers"),
        (MemorySettings(prefetch=2), "memory.prefetch=2 is read with memory.offload=host or disk only"),
        (MemorySettings(choose="auto", prefetch=-1), "memory.prefetch=-1 must be a number of layers"),
    ],
)
def test_a_depth_that_means_nothing_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        settings.check(accelerator=True)


def test_what_auto_leaves_is_taken_along_where_it_is_read(tmp_path):
    """`memory=auto` sets neither the folder nor the depth, and may choose to move nothing."""
    memory = MemorySettings(choose="auto", offload_folder=str(tmp_path), prefetch=2)
    memory.check(accelerator=False)
    assert memory.levers() == {"mlp_chunk": None, "offload": "none"}
    chosen = MemorySettings(offload="disk", offload_folder=str(tmp_path), prefetch=2)
    assert chosen.levers() == {
        "mlp_chunk": None,
        "offload": "disk",
        "offload_folder": str(tmp_path),
        "prefetch": 2,
    }


# ---- on a GPU

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
on_a_gpu = [pytest.param(build, marks=needs_gpu) for build in (HostStore, DiskStore)]


@pytest.mark.parametrize("build", on_a_gpu)
def test_gradients_on_a_gpu(build):
    """Copies change no bit; what is left is the order in which kernels add up."""
    for mode in ("full", "keep_attention"):
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
            plain = step_gradients(None, mode=mode, device="cuda", dtype=dtype)
            for prefetch in (0, 1, 3):
                found = step_gradients(build(prefetch=prefetch), mode=mode, device="cuda", dtype=dtype)
                assert_close(found, plain, tolerance=tolerance)


@pytest.mark.parametrize("build", on_a_gpu)
def test_copies_run_while_a_gpu_computes(build):
    """A kernel that sleeps stands for a layer: the copies for the next one end before it does."""
    store, shape = build(), (1, 65536, 512)
    sleep = partial(torch.cuda._sleep, 2_000_000_000)  # about a second
    for pinned in (False, True):
        sent = [send(store, torch.full(shape, float(layer), device="cuda")) for layer in range(4)]
        torch.cuda.synchronize()
        store.unpack(sent[3])
        store.unpack(sent[2])
        sleep()
        computed = torch.cuda.current_stream().record_event()
        place = sent[1].place
        if place.filled is not None:
            place.filled.result()
        place.arrival.event.synchronize()
        assert not (pinned and computed.query())  # at first, pinning may have waited
        assert torch.equal(store.unpack(sent[1]), torch.full(shape, 1.0, device="cuda"))
        torch.cuda.synchronize()
        sent.clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_host_does_not_wait_for_a_gpu():
    """After a first step has pinned memory, nothing of host memory's way synchronises."""
    store = HostStore()
    for debug in ("default", "error"):
        torch.cuda.set_sync_debug_mode(debug)
        try:
            sent = [send(store, torch.ones(1, 4096, 512, device="cuda")) for _ in range(4)]
            while sent:
                store.unpack(sent.pop())
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert float(store.unpack(send(store, torch.ones(1, 4096, device="cuda"))).sum()) == 4096.0
