"""Sharded steps in gloo processes against padded rows in one: loss, every gradient, and what has to fail."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessRaisedException

from align.distributed.agreement import check_agreement
from align.longseq import ATTENTION, pair_logps
from align.longseq.collectives import all_reduce_sum
from align.longseq.parallel import start_parallel
from align.query_scale.log_length import LogLength
from align.query_scale.scale import plain
from tests.distributed import run_distributed
from tests.longseq.sharded import Case, case_errors, evaluation_error
from tests.longseq.wrapped import GEMMA, GPT_OSS

KINDS = ("ulysses", "gather")
TOLERANCE = 1e-5
DYNAMIC_ROPE = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LINEAR_ROPE = {"rope_type": "linear", "factor": 20.0, "rope_theta": 10000.0}
LONG_PROMPT = ((40, (2, 1)),)  # the first ranks own no scored token

CASES = {
    "heads 4/2, two prompts": Case(),
    "heads 9/3": Case(heads=(9, 3)),
    "heads 7/1": Case(heads=(7, 1)),
    "heads 3/3": Case(heads=(3, 3)),
    "heads 1/1": Case(heads=(1, 1)),
    "no rejected answer": Case(rows=((23, (6,)),)),
    "three rejected answers": Case(rows=((17, (6, 4, 9, 1)),)),
    "a long prompt": Case(rows=LONG_PROMPT),
    "a row of three tokens": Case(rows=((2, (1,)),)),
    "a row of four tokens": Case(rows=((2, (1, 1)),)),
    "positions that jump": Case(jump=900),
    "positions by steps of 5, linear RoPE": Case(
        jump=900, step=5, model={"rope_parameters": LINEAR_ROPE}, dtype=torch.float64
    ),
    "several rows and the NLL of the context": Case(tokens_per_row=30, nll_scope="sequence"),
    "NLL of the chosen answer": Case(rows=LONG_PROMPT, nll_scope="chosen"),
    "checkpointing": Case(checkpointing="full"),
    "checkpointing, attention kept": Case(heads=(9, 3), checkpointing="keep_attention"),
    "LoRA": Case(lora=True),
    "LoRA, attention kept, one row a prompt": Case(
        heads=(7, 1), lora=True, checkpointing="keep_attention", tokens_per_row=1
    ),
    "RoPE that depends on the longest position": Case(
        model={"max_position_embeddings": 16, "rope_parameters": DYNAMIC_ROPE}
    ),
}
ARCHITECTURES = {kind: Case(model={"kind": kind}) for kind in ("qwen2", "qwen3", "mistral", "phi3")}
SCALED = {"num_hidden_layers": 3, "query_scale": plain(LogLength(window=4, skip_layers=1))}
PATTERNS = {
    "queries scaled by position, tiled": Case(
        heads=(9, 3), model=SCALED, plain="align_scaled", checkpointing="full", mlp_chunk=9, jump=40
    ),
    "a window": Case(heads=(9, 3), model={"kind": "mistral", "sliding_window": 6}),
    "a window longer than some rows": Case(model={"kind": "mistral", "sliding_window": 20}),
    "windows beside full layers": Case(model=GEMMA, checkpointing="keep_attention"),
    "windows and sinks": Case(heads=(7, 1), model=GPT_OSS, plain="eager"),
    "windows and sinks, tiled": Case(
        heads=(9, 3), model=GPT_OSS, plain="eager", checkpointing="full", mlp_chunk=9, jump=900
    ),
    "latent attention": Case(
        model={
            "kind": "minicpm3",
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "num_key_value_heads": 4,
        }
    ),
}


def table_worker(rank: int, size: int, cases: dict[str, Case]) -> dict[tuple[str, str], dict[str, float]]:
    """Every case under both exchanges."""
    return {
        (kind, name): case_errors(case, parallel)
        for kind in KINDS
        for parallel in [start_parallel(kind, size)]
        for name, case in cases.items()
    }


@pytest.fixture(scope="module")
def table():
    """Errors by degree, computed once a degree: starting processes takes longer than the cases."""
    found: dict[int, dict] = {}

    def of_degree(degree: int) -> dict:
        if degree not in found:
            cases = CASES | (ARCHITECTURES if degree == 2 else {}) | (PATTERNS if degree < 4 else {})
            found[degree] = run_distributed(table_worker, degree, cases)[0]
        return found[degree]

    return of_degree


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("degree", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_loss_and_every_gradient_as_in_one_process(table, degree, kind, name):
    errors = table(degree)[kind, name]
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= TOLERANCE, f"{worst}: relative error {errors[worst]:.2e}"


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_other_architectures(table, kind, name):
    errors = table(2)[kind, name]
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("degree", [2, 3])
def test_windows_sinks_and_latent_attention(table, degree, kind, name):
    errors = table(degree)[kind, name]
    assert max(errors.values()) <= TOLERANCE, errors


def many_heads(rank: int, size: int) -> dict[str, dict[str, float]]:
    """28 query and 4 KV heads, fewer than ranks, under both exchanges.

    In fp64: a model so wide with such weights rounds to 2e-5 in fp32 on some processors, in one process too.
    """
    case = Case(heads=(28, 4), rows=((37, (5, 9)),), dtype=torch.float64)
    return {kind: case_errors(case, start_parallel(kind, size)) for kind in KINDS}


def test_twenty_eight_heads_on_eight_ranks():
    """What LongPO's users asked for: more ranks than KV heads, query heads that they do not divide, uneven shards."""
    for errors in run_distributed(many_heads, 8)[0].values():
        assert max(errors.values()) <= 1e-6, errors  # the norms of transformers are fp32


def odds_and_ends(rank: int, size: int) -> dict[str, float]:
    """What needs a group and no table."""
    found = {}
    for kind in KINDS:
        parallel = start_parallel(kind, size)
        found[f"evaluation {kind}"] = evaluation_error(Case(heads=(7, 1)), parallel)
        found[f"bf16 {kind}"] = bf16_error(parallel)
    # y_r = Σ values = 3 on both ranks; L_r = (r + 1) · y. The sum of the ranks' gradients is 1 + 2 everywhere.
    values = torch.tensor([1.0 + rank], requires_grad=True)
    total = all_reduce_sum(values, dist.group.WORLD)
    (gradient,) = torch.autograd.grad(total * (rank + 1), values)
    return found | {"sum": total.item(), "gradient": gradient.item()}


def bf16_error(parallel) -> float:
    """Relative difference of a bf16 model's sums, sharded against one process."""
    case = Case(rows=((60, (20, 30)),))
    with torch.no_grad():
        model = case.build(ATTENTION).to(torch.bfloat16)
        sharded, whole = (pair_logps(model, case.batch(), parallel=one) for one in (parallel, None))
    assert sharded.chosen.dtype == torch.float64
    return ((sharded.chosen - whole.chosen).norm() / whole.chosen.norm()).item()


def test_evaluation_mode_bf16_and_the_sum_with_its_gradient():
    """Evaluation without gradients runs sharded like training; bf16 states travel as they are.

    bf16 has 8 bits, so a logit is off by up to 2⁻⁹ of itself; sums of 20 tokens agree to well below 1e-2.
    """
    for found in run_distributed(odds_and_ends, 2):
        for kind in KINDS:
            assert found[f"evaluation {kind}"] <= TOLERANCE
            assert found[f"bf16 {kind}"] <= 1e-2
        assert (found["sum"], found["gradient"]) == (3.0, 3.0)


def different_rows(rank: int, size: int) -> None:
    """Each rank of the group reads rows of its own."""
    parallel = start_parallel("gather", size)
    case = Case(rows=((20 + rank, (3, 3)),))
    pair_logps(case.build(ATTENTION), case.batch(), parallel=parallel)


def different_settings(rank: int, size: int) -> None:
    """One rank was started with another exchange."""
    start_parallel("gather" if rank else "ulysses", size)


def different_scope(rank: int, size: int) -> None:
    """One rank wants another NLL."""
    parallel = start_parallel("ulysses", size)
    case = Case()
    scope = "sequence" if rank else "none"
    pair_logps(case.build(ATTENTION), case.batch(), parallel=parallel, nll_scope=scope)


def fails_in_one_rank(rank: int, size: int) -> None:
    """One rank raises in the middle of a step, while the other waits for it in a collective."""
    parallel = start_parallel("ulysses", size)
    case = Case()
    model = case.build(ATTENTION)
    if rank == 1:

        def explode(*args):
            raise RuntimeError("rank 1 ran into a wall")

        model.model.layers[1].register_forward_hook(explode)
    pair_logps(model, case.batch(), parallel=parallel).chosen.sum().backward()


@pytest.mark.parametrize(
    ("worker", "message"),
    [
        (different_rows, "Processes 0 and 1 came with different rows"),
        (different_scope, "Processes 0 and 1 came with different rows"),
        (
            different_settings,
            r"different settings \(parallel.kind=ulysses, parallel.degree=2 against parallel.kind=gather",
        ),
        (fails_in_one_rank, "rank 1 ran into a wall"),
    ],
)
def test_what_differs_between_ranks_ends_the_job_with_its_message(worker, message):
    started = time.monotonic()
    with pytest.raises(ProcessRaisedException, match=message):
        run_distributed(worker, 2)
    assert time.monotonic() - started < 120


def agree(rank: int, size: int) -> None:
    check_agreement({"degree": 2}, dist.group.WORLD, what="settings")


def test_agreement_passes_where_all_agree():
    run_distributed(agree, 2)


def test_a_case_describes_what_it_says():
    """The cases' names hold: rows shorter than the degree, fewer heads than ranks, ranks without scored tokens."""
    assert CASES["a row of three tokens"].batch().num_tokens == 3
    assert len(CASES["several rows and the NLL of the context"].batch().rows) == 2
    assert int(CASES["a long prompt"].batch().rows[0].predictor.min()) > 40 // 2
    assert dataclasses.asdict(CASES["heads 1/1"])["heads"] == (1, 1)
