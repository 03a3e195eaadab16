"""The load-balancing loss of mixtures of experts: loss and gradients as by autograd on padded rows."""

from __future__ import annotations

import pytest
import torch

from align.longseq import ATTENTION, pair_logps
from align.longseq.balance import RouterWatch
from align.longseq.parallel import start_parallel
from align.models.routers import read_router, routers_of
from tests.distributed import run_distributed
from tests.longseq.balanced import (
    COEFFICIENT,
    MIXTURES,
    SIGMOID,
    balance_of,
    mixture,
    plain_balance,
    plain_step,
    recorded,
    routing_of,
    shared_step,
    sparse,
    step_errors,
    wrapped_step,
)
from tests.longseq.plain import relative_error
from tests.longseq.sharded import Case, errors

# The library's routers compute their weights in fp32, whatever the model is in.
TOLERANCE = 1e-6
LEVERS = {
    "rows": {"tokens_per_row": 30},
    "full": {"checkpointing": "full", "tokens_per_row": 40},
    "tiles": {"checkpointing": "full", "mlp_chunk": 9, "tokens_per_row": 30},
    "keep_attention": {"checkpointing": "keep_attention", "mlp_chunk": 9},
    "LoRA": {"checkpointing": "full", "lora": True},
}


def assert_small(found: dict[str, float], tolerance: float = TOLERANCE) -> None:
    worst = max(found, key=found.__getitem__)
    assert found[worst] <= tolerance, f"{worst} off by {found[worst]:.2e}"


@pytest.mark.parametrize("kind", MIXTURES)
def test_both_losses_and_every_gradient_are_those_of_padded_rows(kind):
    assert_small(step_errors(mixture(kind)))


@pytest.mark.parametrize("levers", LEVERS)
@pytest.mark.parametrize("kind", ["qwen3_moe", "glm4_moe"])
def test_packing_and_memory_levers_change_nothing(kind, levers):
    assert_small(step_errors(mixture(kind, **LEVERS[levers])))


@pytest.mark.parametrize("levers", ["rows", "tiles", "keep_attention"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "minimax_m2"])
def test_the_balance_loss_alone_is_that_of_autograd(kind, levers):
    """Against logits taken out of the same forward, so that nothing but our own arithmetic can differ."""
    case = mixture(kind, **LEVERS[levers])
    model, plain = case.build(ATTENTION), case.build(ATTENTION)
    routing = routing_of(RouterWatch(model), case.batch())
    case.apply_memory(model)
    pair_logps(model, case.batch(), routing=routing)
    with recorded(plain) as decisions:
        pair_logps(plain, case.batch())
    expected = balance_of(kind, decisions)
    assert abs(routing.loss.item() - expected.item()) <= 1e-12
    routing.loss.backward()
    expected.backward()
    found = {
        name: relative_error(weight.grad, wanted.grad)
        for (name, weight), wanted in zip(model.named_parameters(), plain.parameters(), strict=True)
        if wanted.grad is not None and wanted.grad.any()
    }
    assert {f"{name}.weight" for name in routers_of(model)} <= found.keys()
    assert_small(found, 1e-9)


def test_it_is_the_library_s_loss_where_nothing_is_shared():
    """One prompt with one answer in each row: transformers' own function over the same tokens, k at balance."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    case = mixture("mixtral", rows=((9, (4,)),))
    model = case.build(ATTENTION)
    routing = routing_of(RouterWatch(model), case.batch())
    pair_logps(model, case.batch(), routing=routing)
    plain = case.build("sdpa")
    ids = case.batch().rows[0].input_ids
    logits = plain(input_ids=ids, output_router_logits=True).router_logits
    assert routing.loss.item() == pytest.approx(load_balancing_loss_func(logits, 4, 2).item(), rel=1e-6)


def test_placeholders_do_not_count():
    case = mixture("qwen3_moe")
    values = []
    for rows, real in ((case.rows, [True, False]), (case.rows[:1], [True])):
        one = mixture("qwen3_moe", rows=rows)
        model = one.build(ATTENTION)
        routing = routing_of(RouterWatch(model), one.batch())
        routing.real = torch.tensor(real)
        pair_logps(model, one.batch(), routing=routing)
        values.append(routing.loss.item())
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_a_forward_without_it_is_left_alone():
    """Hooks of a policy that is also asked for other rows, and recomputes them, add nothing there."""
    case = mixture("qwen3_moe", checkpointing="full")
    model = case.build(ATTENTION)
    routing = routing_of(RouterWatch(model), case.batch())
    case.apply_memory(model)
    other = pair_logps(model, case.batch()).chosen.sum()
    first = pair_logps(model, case.batch(), routing=routing).chosen.sum()
    (first * 0 + other).backward()
    ours = model.model.layers[0].mlp.gate.weight.grad.clone()
    plain = case.build(ATTENTION)
    pair_logps(plain, case.batch()).chosen.sum().backward()
    assert relative_error(ours, plain.model.layers[0].mlp.gate.weight.grad) <= 1e-9


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_router_says_how_it_weighs(kind):
    model = mixture(kind).build(ATTENTION)
    router = read_router(type(model), model.config)
    assert router.form == ("sigmoid" if kind in SIGMOID else "softmax")
    assert router.experts == 4


def sharded(rank: int, size: int, case: Case, kind: str) -> dict[str, float]:
    """One group over all processes."""
    return step_errors(case, start_parallel(kind, size))


@pytest.mark.parametrize("exchange", ["ulysses", "gather"])
@pytest.mark.parametrize(("degree", "kind"), [(2, "qwen3_moe"), (3, "mixtral")])
def test_sequence_parallelism_changes_nothing(exchange, degree, kind):
    case = mixture(kind, checkpointing="full", mlp_chunk=9, tokens_per_row=30)
    found, *_ = run_distributed(sharded, degree, case, exchange, timeout=200)
    assert_small(found)


def data_parallel(rank: int, size: int, case: Case, degree: int) -> dict[str, float]:
    """Each group has its own prompts, and unlike numbers of rows."""
    parallel = start_parallel("gather", degree)
    loss, found = shared_step(case, parallel, rank // degree, size // degree)
    losses = torch.tensor(loss, dtype=torch.float64)
    torch.distributed.all_reduce(losses)
    if rank:
        return {}
    expected_loss, expected = plain_step(case)
    return errors(losses.item() / size, found, expected_loss, expected)


@pytest.mark.parametrize(("size", "degree"), [(2, 1), (4, 2)])
def test_processes_with_other_prompts_are_one(size, degree):
    """The choices of all are added up before they meet the probabilities."""
    case = mixture(
        "qwen3_moe", rows=((20, (7, 3)), (40, (5, 6)), (18, (2, 4)), (30, (8, 2))), tokens_per_row=60
    )
    found, *_ = run_distributed(data_parallel, size, case, degree, timeout=200)
    assert_small(found)


def test_the_coefficient_shows():
    """Else the tests above would pass without any balance loss."""
    case = mixture("qwen3_moe")
    model = case.build("sdpa")
    assert COEFFICIENT * plain_balance(model, case).item() > 1.0


def wrapped(rank: int, size: int, name: str, case: Case, degree: int) -> tuple[dict[str, float], int]:
    return wrapped_step(name, case, degree)


# ZeRO-3 needs a kernel that calls the same modules on every process.
WRAPPED = [
    ("fsdp2", 2, 1, sparse("qwen3_moe", "grouped_mm", mlp_chunk=1)),
    ("fsdp2", 4, 2, sparse("mixtral", "eager")),
    ("zero3", 2, 1, sparse("mixtral", "grouped_mm")),
    ("zero3", 4, 2, sparse("qwen3_moe", "grouped_mm", mlp_chunk=4)),
]


@pytest.mark.parametrize(("wrapper", "size", "degree", "case"), WRAPPED)
def test_experts_that_no_token_chooses_in_a_wrapper(wrapper, size, degree, case):
    """Processes route unlike, each leaves experts out, and every gradient is that of one process."""
    if wrapper.startswith("zero"):
        pytest.importorskip("deepspeed")
    for found, left_out in run_distributed(wrapped, size, wrapper, case, degree, timeout=200):
        assert left_out > 0
        assert_small(found, 1e-5)
