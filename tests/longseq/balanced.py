"""The load-balancing loss by plain rows and autograd, which the one of the shared-prefix forward is held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from align.longseq import ATTENTION, SharedPrefixBatch, pair_logps
from align.longseq.balance import RouterWatch, Routing
from align.longseq.parallel import SequenceParallel, start_parallel
from align.models.routers import routers_of
from tests.longseq.plain import gradients
from tests.longseq.sharded import Case, errors, loss_of, mean_over_world, plain_logps
from tests.longseq.wrapped import WRAPPERS

COEFFICIENT = 3.0  # large, so that its part of the gradients shows

# Tiny mixtures of experts, and how each makes probabilities of its router's logits.
_QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GROUPED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 2}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_QWEN, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
    "qwen3_moe": {**_QWEN, "norm_topk_prob": True},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": {**_GROUPED, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "dots1": {**_GROUPED, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 24,
        "moe_layer_start_index": 0,
    },
}
SIGMOID = {"glm4_moe", "dots1", "minimax_m2"}


def mixture(kind: str, **settings: Any) -> Case:
    """A case with a tiny mixture of experts, in fp64, whose experts run one after the other."""
    model = {"kind": kind, "experts_implementation": "eager", **MIXTURES[kind]}
    return Case(model=model, dtype=torch.float64, **settings)


def probabilities_of(kind: str, logits: Tensor) -> Tensor:
    if kind not in SIGMOID:
        return logits.softmax(-1)
    return logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True)


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within it every call of a router adds its logits and choices, with their graph."""
    decisions: list[tuple[Tensor, Tensor]] = []
    handles = [
        router.register_forward_hook(lambda router, args, output: decisions.append((output[0], output[2])))
        for router in routers_of(model).values()
    ]
    try:
        yield decisions
    finally:
        for handle in handles:
            handle.remove()


def balance_of(kind: str, decisions: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """E · Σ f · P of logits `[n, E]` and choices `[n, k]`."""
    probabilities = torch.cat([probabilities_of(kind, logits) for logits, _ in decisions])
    experts = probabilities.shape[-1]
    chosen = torch.cat([indices for _, indices in decisions])
    choices = torch.nn.functional.one_hot(chosen, experts).sum(1).to(probabilities)
    return experts * (choices.mean(0) * probabilities.mean(0)).sum()


def plain_balance(model: nn.Module, case: Case) -> Tensor:
    """By a row for each answer, of which all but the first leave their prompt out."""
    counted = []
    for example in case.examples():
        for place, answer in enumerate(example.answers):
            ids = torch.cat([torch.as_tensor(part) for part in (example.prompt_ids, answer.input_ids)])
            after = int(example.position_ids[-1]) + 1 + torch.arange(len(answer.input_ids))
            positions = torch.cat([torch.as_tensor(example.position_ids), after])
            with recorded(model) as decisions:
                model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
            start = 0 if place == 0 else len(example.prompt_ids)
            counted += [(logits[start:], chosen[start:]) for logits, chosen in decisions]
    return balance_of(case.model["kind"], counted)


def plain_step(case: Case) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of both losses by padded rows and autograd, in this process alone."""
    model = case.build("sdpa")
    loss = loss_of(plain_logps(model, case)) + COEFFICIENT * plain_balance(model, case)
    return loss.item(), gradients(model, loss)


def routing_of(watch: RouterWatch, batch: SharedPrefixBatch) -> Routing:
    return Routing(watch.router, [True] * len(batch), float(len(batch)), torch.device("cpu"))


def shared_step(
    case: Case, parallel: SequenceParallel | None, data_rank: int = 0, data_size: int = 1
) -> tuple[float, dict[str, Tensor]]:
    """Loss and the world's mean gradient of both losses by the shared-prefix forward."""
    model = case.build(ATTENTION)
    watch = RouterWatch(model)
    case.apply_memory(model)
    batch = case.batch(data_rank, data_size)
    routing = routing_of(watch, batch)
    logps = pair_logps(
        model, batch, parallel=parallel, nll_scope=case.nll_scope, chunk_size=8, routing=routing
    )
    assert routing.loss is not None
    loss = loss_of(logps) + COEFFICIENT * routing.loss
    found = gradients(model, loss)
    return loss.item(), mean_over_world(found) if dist.is_initialized() else found


def step_errors(case: Case, parallel: SequenceParallel | None = None) -> dict[str, float]:
    """Relative errors of the loss and of every gradient; under several processes in the first one alone."""
    loss, found = shared_step(case, parallel)
    if dist.is_initialized() and dist.get_rank() != 0:
        return {}
    expected_loss, expected = plain_step(case)
    return errors(loss, found, expected_loss, expected)


# Eight experts of which a token takes one, and few tokens: every process leaves some without any.
SPARSE = {
    "qwen3_moe": {**_QWEN, "num_experts": 8, "num_experts_per_tok": 1},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 1},
}
FEW_ROWS = ((6, (2, 1)), (9, (1, 2)), (3, (2, 1)), (5, (1, 1)))


def sparse(kind: str, experts: str, mlp_chunk: int | None = None) -> Case:
    """A case in fp32 with four prompts of few tokens; tiles of one token are more than some process has tokens."""
    model = {"kind": kind, "experts_implementation": experts, **SPARSE[kind]}
    return Case(model=model, rows=FEW_ROWS, checkpointing="full", mlp_chunk=mlp_chunk, tokens_per_row=12)


def wrapped_step(name: str, case: Case, degree: int) -> tuple[dict[str, float], int]:
    """A step inside a wrapper against one process: errors, and how many (layer, expert) no token here has chosen."""
    parallel = start_parallel("gather", degree)
    rank, world = dist.get_rank(), dist.get_world_size()
    model = case.build(ATTENTION)
    watch = RouterWatch(model)
    case.apply_memory(model)
    batch = case.batch(rank // degree, world // degree)
    chosen: dict[nn.Module, set[int]] = {}

    def note(router: nn.Module, args: Any, output: Any) -> None:
        chosen.setdefault(router, set()).update(output[2].flatten().tolist())

    for router in routers_of(model).values():
        router.register_forward_hook(note)
    step, _ = WRAPPERS[name](model)

    def loss_of_both(called: nn.Module) -> Tensor:
        routing = routing_of(watch, batch)
        logps = pair_logps(called, batch, parallel=parallel, chunk_size=3, routing=routing)
        assert routing.loss is not None
        return loss_of(logps) + COEFFICIENT * routing.loss

    loss, found = step(loss_of_both)
    mean = torch.tensor(loss, dtype=torch.float64)
    dist.all_reduce(mean)
    expected_loss, expected = plain_step(case)
    left = sum(watch.router.experts - len(own) for own in chosen.values())
    return errors(mean.item() / world, found, expected_loss, expected), left
