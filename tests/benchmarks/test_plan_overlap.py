"""What hides behind computation: small timelines by hand, and bounds of whole steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from align.planning.job import Job, Levers, Precision, Rows, Strategy
from align.planning.time import step_time
from benchmarks import plan_scale
from benchmarks.plan_overlap import GPU, LATENCY, NETWORK, Timeline, layer_of, overlapped

ROWS = Rows(64 * 1024, (512,) * 3)


@pytest.fixture(scope="module")
def full():
    return plan_scale.architecture()


@pytest.fixture(scope="module")
def adapter():
    return plan_scale.architecture(lora=16)


def test_what_does_not_wait_is_hidden():
    """Two tasks of 3 s side by side take 3 s; one after the other 6."""
    beside = Timeline()
    beside.add(GPU, 3.0)
    beside.add(NETWORK, 3.0)
    assert beside.seconds() == 3.0
    behind = Timeline()
    first = behind.add(GPU, 3.0)
    behind.add(NETWORK, 3.0, first)
    assert behind.seconds() == 6.0


def test_one_gpu_and_one_network():
    """Messages of 2 s each queue: the second ends at 4, and what waits for it at 5."""
    line = Timeline()
    line.add(NETWORK, 2.0)
    second = line.add(NETWORK, 2.0)
    line.add(GPU, 1.0)
    line.add(GPU, 1.0, second)
    assert line.seconds() == 5.0


def test_a_ready_task_does_not_wait_behind_one_that_is_not():
    """The first message waits for 4 s of computation; the second, issued later, is sent meanwhile."""
    line = Timeline()
    computed = line.add(GPU, 4.0)
    line.add(NETWORK, 1.0, computed)
    line.add(NETWORK, 3.0)
    assert line.seconds() == 5.0


def test_no_message_has_no_latency():
    line = Timeline()
    assert line.send(0.0) is None
    assert line.send(1.0) == 0
    assert line.seconds() == 1.0 + LATENCY
    assert Timeline().seconds() == 0.0


def test_one_gpu_waits_for_nothing(adapter):
    """The same seconds as without a simulation."""
    job, machine = Job(ROWS, Precision(2), accumulation=3), plan_scale.cluster(1)
    found = overlapped(adapter, job, Strategy(), machine)
    assert found.seconds == pytest.approx(step_time(adapter, job, Strategy(), machine).total)
    assert found.exposed == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize(
    ("exchange", "degree", "inner"), [("none", 1, 1), ("ulysses", 8, 1), ("gather", 8, 1), ("mixed", 16, 8)]
)
@pytest.mark.parametrize("mode", ["none", "full"])
def test_a_step_lies_between_its_bounds(full, wrapper, exchange, degree, inner, mode):
    """Never faster than its computation or its network alone, never slower than both one after the other."""
    machine = plan_scale.cluster(64)
    job = Job(ROWS, Precision(4, autocast=True), accumulation=2)
    strategy = Strategy(wrapper, exchange, degree, Levers(mode), inner)
    found, apart = overlapped(full, job, strategy, machine), step_time(full, job, strategy, machine)
    messages = job.accumulation * full.layers * 10 * LATENCY
    assert found.seconds >= max(apart.compute, apart.exchange + apart.wrapper) * (1 - 1e-9)
    assert found.seconds <= apart.total + messages
    assert 0 <= found.exposed < 1
    assert found.apart == apart.total


def test_weights_hide_and_exchanges_do_not(full):
    """ZeRO-3's gathers all but vanish behind 64K tokens; ulysses' all-to-alls are waited for whole."""
    machine = plan_scale.cluster(64)
    job = Job(ROWS, Precision(4, autocast=True))
    weights = Strategy("zero3", levers=Levers("full"))
    found, apart = overlapped(full, job, weights, machine), step_time(full, job, weights, machine)
    assert found.seconds - apart.compute < 0.1 * apart.wrapper
    adapter = plan_scale.architecture(lora=16)
    shared = Strategy("ddp", "ulysses", 16, Levers("full"))
    lora = replace(job, precision=Precision(2))
    found, apart = overlapped(adapter, lora, shared, machine), step_time(adapter, lora, shared, machine)
    assert found.seconds - apart.compute >= apart.exchange


def test_a_layers_parts_are_the_steps(full):
    """Of all layers, passes and the head together: the seconds that `step_time` counts."""
    machine = plan_scale.cluster(64)
    job = Job(ROWS, Precision(4, autocast=True))
    strategy = Strategy("zero3", "ulysses", 8, Levers("full"))
    layer, whole = layer_of(full, job, strategy, machine, last=True), step_time(full, job, strategy, machine)
    computed = layer.products + layer.attention + layer.back_products + layer.back_attention
    head = 2.0 * full.head_parameters * ROWS.scored * 4 / 8 / machine.rates[0]
    assert full.layers * computed + head == pytest.approx(whole.compute)
    assert full.layers * 3 * (layer.there + layer.back) == pytest.approx(whole.exchange)
    assert full.layers * (2 * layer.weights + layer.gradients) == pytest.approx(whole.wrapper)
    assert 0.05 < layer.before < 0.2
