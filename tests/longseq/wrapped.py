"""The same sharded step inside each wrapper, and three SGD steps with clipping: what training really does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from align.longseq import ATTENTION, pair_logps
from align.longseq.parallel import SequenceParallel, start_parallel
from align.models.structure import find_causal_lm
from losses.types import PairLogps
from tests.longseq.plain import relative_error
from tests.longseq.sharded import Case, loss_of, plain_logps

LEARNING_RATE = 0.01
# Far below the norms that these cases have, so that every step is clipped.
MAX_NORM = 0.5
STEPS = 3

KINDS = ("ulysses", "gather")
# Rounding of fp32 weights (2⁻²⁴ of 0.2) beside updates of about 1e-4 each; a wrong factor gives 1.
TOLERANCES = {"loss": 1e-5, "gradient": 1e-5, "weights": 1e-5, "update": 1e-3}
# Several rows a step, scored tokens spread unequally, so that ranks own unequal numbers of head chunks.
ROWS = ((40, (7, 3, 5)), (9, (2, 8, 1)))
CASES = {
    "full": Case(heads=(3, 1), rows=ROWS, tokens_per_row=60, nll_scope="sequence", checkpointing="full"),
    "LoRA": Case(heads=(3, 1), rows=ROWS, tokens_per_row=60, lora=True, checkpointing="keep_attention"),
}
# Two data-parallel groups of two prompts each: the first packs both into one row, the second needs two.
UNEQUAL = ((20, (7, 3)), (40, (5, 6)), (18, (2, 4)), (30, (8, 2)))
# Ranks of different groups have rows of unlike length: ZeRO-3 hangs unless they cut them into equally many tiles.
TILED = {
    "tiled, full": Case(
        rows=UNEQUAL,
        tokens_per_row=60,
        checkpointing="full",
        mlp_chunk=9,
        offload="disk",
        nll_scope="sequence",
    ),
    "tiled, LoRA": Case(
        rows=UNEQUAL, tokens_per_row=60, checkpointing="keep_attention", mlp_chunk=9, lora=True
    ),
}
GROUPS = {
    "full": Case(rows=UNEQUAL, tokens_per_row=60, checkpointing="full"),
    "LoRA": Case(rows=UNEQUAL, tokens_per_row=60, checkpointing="full", lora=True),
}
# Layers with a window shorter than the rows beside full ones, sinks in both, and two experts of four.
GPT_OSS = {
    "kind": "gpt_oss",
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
GEMMA = {"kind": "gemma3_text", "layer_types": GPT_OSS["layer_types"], "sliding_window": 8}
PATTERNS = {
    "windows": Case(heads=(3, 1), rows=ROWS, tokens_per_row=60, checkpointing="keep_attention", model=GEMMA),
    "windows and sinks": Case(heads=(3, 1), rows=ROWS, checkpointing="full", model=GPT_OSS, plain="eager"),
}

# A step: `(loss of a forward) -> its value, every gradient before clipping`; it also updates the weights.
Step = Callable[[Callable[[nn.Module], Tensor]], tuple[float, dict[str, Tensor]]]
# A wrapper: `model -> step, read the weights`.
Wrapper = Callable[[nn.Module], tuple[Step, Callable[[], dict[str, Tensor]]]]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """By the unwrapped model's names."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _torch_step(model: nn.Module, called: nn.Module, reduce: Callable[[Tensor], Tensor]) -> Step:
    """Backward, clip and SGD by torch; `reduce` makes a parameter's `.grad` the world's mean."""
    weights = trainable(model)
    optimizer = torch.optim.SGD(weights.values(), lr=LEARNING_RATE)

    def step(loss_of_forward: Callable[[nn.Module], Tensor]) -> tuple[float, dict[str, Tensor]]:
        optimizer.zero_grad()
        loss = loss_of_forward(called)
        loss.backward()
        for weight in weights.values():
            weight.grad = reduce(weight.grad)
        gradients = {name: _full(weight.grad).clone() for name, weight in weights.items()}
        norm = nn.utils.clip_grad_norm_(weights.values(), MAX_NORM)
        assert _full(norm) > MAX_NORM, "clipping has to be active"
        optimizer.step()
        return loss.item(), gradients

    return step


def _full(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value.detach()


def _weights(model: nn.Module) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: _full(weight).clone() for name, weight in trainable(model).items()}


def alone(model: nn.Module) -> tuple[Step, Callable[[], dict[str, Tensor]]]:
    """One process, which knows of no other."""
    return _torch_step(model, model, lambda gradient: gradient), _weights(model)


def unwrapped(model: nn.Module) -> tuple[Step, Callable[[], dict[str, Tensor]]]:
    """Gradients averaged by hand."""

    def mean(gradient: Tensor) -> Tensor:
        dist.all_reduce(gradient)
        return gradient / dist.get_world_size()

    return _torch_step(model, model, mean), _weights(model)


def ddp(model: nn.Module) -> tuple[Step, Callable[[], dict[str, Tensor]]]:
    wrapped = DistributedDataParallel(model)
    assert type(wrapped) is DistributedDataParallel
    return _torch_step(model, wrapped, lambda gradient: gradient), _weights(model)


def fsdp2(model: nn.Module) -> tuple[Step, Callable[[], dict[str, Tensor]]]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in find_causal_lm(model).get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert isinstance(model, FSDPModule)
    assert all(isinstance(weight, DTensor) for weight in model.parameters())
    return _torch_step(model, model, lambda gradient: gradient), _weights(model)


def zero(stage: int) -> Wrapper:
    """DeepSpeed ZeRO; it is not told of sequence parallelism."""

    def wrap(model: nn.Module) -> tuple[Step, Callable[[], dict[str, Tensor]]]:
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": MAX_NORM,
            # Thresholds of 0: no weight is small enough to stay on every rank.
            # No leaf modules, as in training (distributed/wrappers.py).
            "zero_optimization": {
                "stage": stage,
                "stage3_param_persistence_threshold": 0,
                "leaf_module": {"classes": []},
            },
            "zero_allow_untested_optimizer": True,
        }
        optimizer = torch.optim.SGD(trainable(model).values(), lr=LEARNING_RATE)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        assert engine.zero_optimization_stage() == stage
        assert engine.dp_world_size == dist.get_world_size()
        assert engine.sequence_parallel_size == 1

        def step(loss_of_forward: Callable[[nn.Module], Tensor]) -> tuple[float, dict[str, Tensor]]:
            loss = loss_of_forward(engine)
            engine.backward(loss)
            gradients = {
                name: safe_get_full_grad(weight).clone() for name, weight in trainable(model).items()
            }
            engine.step()
            assert engine.get_global_grad_norm() > MAX_NORM, "clipping has to be active"
            return loss.item(), gradients

        def weights() -> dict[str, Tensor]:
            return {
                name: safe_get_full_fp32_param(weight).clone() for name, weight in trainable(model).items()
            }

        return step, weights

    return wrap


WRAPPERS: dict[str, Wrapper] = {
    "none": unwrapped,
    "ddp": ddp,
    "fsdp2": fsdp2,
    "zero1": zero(1),
    "zero2": zero(2),
    "zero3": zero(3),
}


def train(
    wrapper: Wrapper, case: Case, attention: str, forward: Callable[[nn.Module], PairLogps]
) -> dict[str, Any]:
    """Loss and gradients of the first step, weights after three."""
    model = case.build(attention)
    if attention == ATTENTION:  # padded rows are the plain way, without levers
        case.apply_memory(model)
    step, weights = wrapper(model)
    losses, gradients = zip(
        *(step(lambda called: loss_of(forward(called))) for _ in range(STEPS)), strict=True
    )
    return {"loss": losses[0], "gradients": gradients[0], "weights": weights()}


def plain_training(case: Case) -> dict[str, Any]:
    """Three steps on padded rows in one process."""
    return train(alone, case, case.plain, lambda called: plain_logps(called, case))


def wrapped_errors(
    name: str, case: Case, parallel: SequenceParallel | None, expected: dict[str, Any], data_size: int = 1
) -> dict[str, float]:
    """Largest relative errors of a wrapper against `plain_training`, the same on every rank.

    Args:
        name: one of `WRAPPERS`.
        case: what is trained on; each data-parallel group has equally many of its prompts.
        parallel: the sequence-parallel group.
        expected: what `plain_training` gave.
        data_size: data-parallel groups.

    Returns:
        `loss`, `gradient`, `weights` after three steps, and `update`: how far they moved from the start,
        which rounding of weights beside a small update makes less exact, and in which a wrong factor shows.
    """
    batch = case.batch(dist.get_rank() * data_size // dist.get_world_size(), data_size)

    def forward(called: nn.Module) -> PairLogps:
        return pair_logps(called, batch, parallel=parallel, nll_scope=case.nll_scope, chunk_size=3)

    actual = train(WRAPPERS[name], case, ATTENTION, forward)
    loss = torch.tensor(actual["loss"], dtype=torch.float64)
    dist.all_reduce(loss)
    start = trainable(case.build(ATTENTION))
    moved, wanted = ({key: run["weights"][key] - start[key] for key in start} for run in (actual, expected))
    return {
        "loss": abs(loss.item() / dist.get_world_size() - expected["loss"]) / abs(expected["loss"]),
        "gradient": _worst(actual["gradients"], expected["gradients"]),
        "weights": _worst(actual["weights"], expected["weights"]),
        "update": _worst(moved, wanted),
    }


def _worst(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert actual.keys() == expected.keys()
    return max(relative_error(actual[name], expected[name]) for name in expected)


def worker(
    rank: int,
    size: int,
    wrappers: Sequence[str],
    cases: dict[str, Case],
    degree: int,
    kinds: Sequence[str] = KINDS,
) -> dict[tuple[str, str, str], dict[str, float]]:
    """Every (wrapper, case, exchange) on `size // degree` data-parallel groups."""
    expected = {name: plain_training(case) for name, case in cases.items()}
    return {
        (wrapper, name, kind): wrapped_errors(wrapper, case, parallel, expected[name], size // degree)
        for kind in kinds
        for parallel in [start_parallel(kind, degree)]
        for name, case in cases.items()
        for wrapper in wrappers
    }
