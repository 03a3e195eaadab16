"""The planner's bytes under DeepSpeed against what its engine holds and sends, on two gloo processes.

The model is small, so that buckets are made small too and parts can be told apart; a part's bytes are those of the
storages behind its tensors, each counted once.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from align.adapters.adapter import add_adapter
from align.adapters.lora import Lora
from align.models.settings import ModelSettings
from align.planning.architecture import measure
from align.planning.job import Job, Precision, Rows
from align.planning.states import states
from align.planning.time import wrapper_bytes
from tests.distributed import run_distributed
from tests.tiny import tiny_model

PROCESSES, MICRO_BATCHES = 2, 3
BUCKET = 2048  # numbers, of 0.7 million that train
PRECISIONS = {
    "float32": Precision(4),
    "float32, trainer.bf16": Precision(4, autocast=True),
    "bfloat16": Precision(2),
}
CASES = [(name, lora) for name in PRECISIONS for lora in (0, 64)]  # precision, rank of LoRA


def make(name: str, lora: int) -> Any:
    """Four layers; with an adapter of that rank, 0 trains all."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32}
    base = tiny_model("llama", num_hidden_layers=4, **sizes)
    base = base.to(torch.bfloat16 if name == "bfloat16" else torch.float32)
    return add_adapter(base, Lora(r=lora) if lora else None)


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address → bytes, each storage once."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def everything(model: Any) -> int:
    """Bytes of every tensor that Python knows of; autograd's gradients are looked at, so that it does."""
    known = [weight.grad for weight in model.parameters()]
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, Tensor) and each.device.type == "cpu"]
    del known
    return sum(storages(tensors).values())


def engine_of(model: Any, stage: int, *, low: bool) -> Any:
    """As accelerate makes it, but for its small buckets, and for logging what is sent."""
    import deepspeed

    zero = {
        "stage": stage,
        "reduce_bucket_size": BUCKET,
        # Nothing stays gathered from the forward to the backward pass, as where there are more than 1e9 weights.
        **dict.fromkeys(("stage3_param_persistence_threshold", "stage3_max_live_parameters"), 0),
        **dict.fromkeys(("stage3_max_reuse_distance", "stage3_prefetch_bucket_size"), 0),
    }
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": low},
        "comms_logger": {"enabled": True, "prof_all": True, "verbose": False},
    }
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    return deepspeed.initialize(model=model, config=config, optimizer=optimizer)[0]


def sent() -> float:
    """Bytes that a process has sent, by ring algorithms: an all-reduce is two passes over its message."""
    from deepspeed.comm.comm import comms_logger

    # What is logged of an all-gather is the process's own share.
    passes = {"all_reduce": 2, "all_gather_into_tensor": PROCESSES, "reduce_scatter_tensor": 1}
    total = 0.0
    for name, sizes in comms_logger.comms_dict.items():
        if name not in ("broadcast", "barrier"):  # of the start
            total += passes[name] * sum(size * calls[0] for size, calls in sizes.items())
    return total * (PROCESSES - 1) / PROCESSES


def held_and_sent(model: Any, stage: int, *, low: bool) -> dict[str, float]:
    """Two steps; bytes that the engine holds, and those that it sends in the second."""
    engine = engine_of(model, stage, low=low)
    zero, ids = engine.optimizer, torch.arange(24)[None]
    found: dict[str, float] = {}
    held = everything(model)
    for number in range(2 * MICRO_BATCHES):
        if number == MICRO_BATCHES:
            before = sent()
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        if number == 0:
            # Stage 3 has made room for them from the start.
            room = sum(storages([zero.grad_partitions_flat_buffer]).values()) if stage == 3 else 0
            found["gradients"] = everything(model) - held + room
        engine.step()
    found["sent"] = sent() - before
    masters = zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups
    weights = storages(weight.ds_tensor if stage == 3 else weight for weight in model.parameters())
    slots = [each for state in zero.optimizer.state.values() for each in state.values() if each.dim()]
    own = storages([*masters, *slots])
    found["weights"] = sum(weights.values())
    found["optimizer"] = sum(count for address, count in own.items() if address not in weights)
    return found


def worker(rank: int, size: int, stage: int) -> dict[tuple[str, int], dict[str, float]]:
    """Every case in turn."""
    return {
        (name, lora): held_and_sent(make(name, lora), stage, low=PRECISIONS[name].autocast)
        for name, lora in CASES
    }


def buffers(rank: int, size: int) -> dict[str, str]:
    """Types of RoPE's frequencies and of the first weight, before and in the engine."""
    model = make("float32", 0)
    before = model.model.rotary_emb.inv_freq.clone()
    engine = engine_of(model, 1, low=True)
    after = engine.module.model.rotary_emb.inv_freq
    assert torch.equal(before, after)
    return {"inv_freq": str(after.dtype), "weight": str(next(engine.module.parameters()).dtype)}


def test_frequencies_stay_in_fp32():
    """DeepSpeed before 0.19.2 rounded them with the weights: at position 1,000 angles were off by up to a radian."""
    pytest.importorskip("deepspeed")
    (found,) = run_distributed(buffers, 1)
    assert found == {"inv_freq": "torch.float32", "weight": "torch.bfloat16"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bytes_are_the_engines(stage):
    """Weights, gradients, master and Adam of a process, and what it sends in a step."""
    pytest.importorskip("deepspeed")
    (measured, _) = run_distributed(worker, PROCESSES, stage)
    wrapper = f"zero{stage}"
    for (name, lora), found in measured.items():
        sizes = measure(make(name, 0).config, ModelSettings(adapter=Lora(r=lora) if lora else None))
        job = Job(Rows(8, (8,)), PRECISIONS[name], accumulation=MICRO_BATCHES)
        planned = states(sizes, job, wrapper, PROCESSES)
        assert found["weights"] == pytest.approx(planned.weights, rel=0.01), name
        assert found["optimizer"] == pytest.approx(planned.optimizer, rel=0.01), name
        # Beside the gradients lies a bucket.
        assert found["gradients"] == pytest.approx(planned.gradients, rel=0.06), name
        # Stage 3 gathers the head once for both passes, and no embedding for the backward one.
        ends = 0.05 if stage == 3 else 0.01
        assert found["sent"] == pytest.approx(wrapper_bytes(sizes, job, wrapper, PROCESSES), rel=ends), name
