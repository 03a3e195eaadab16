"""Data × sequence parallel: who reads which rows, references and evaluation on shards, FSDP2 in the Trainer."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model
from torch.distributed.tensor import DTensor

from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.parallel import SequenceParallel, start_parallel
from align.reference.shards import load_reference
from align.reference.sources import AdapterOff, Frozen
from align.training.trainer import PreferenceTrainer
from tests.distributed import run_distributed
from tests.longseq.plain import assert_close, randomise_lora_b
from tests.tiny import tiny_model
from tests.training.helpers import DPO, Rows, make_trainer, weights

ROWS = 11  # two groups read two a micro-batch: the last one of an epoch has three rows and a placeholder
EPOCHS, SAVED = (
    2,
    3,
)  # an epoch has two steps of two micro-batches and one; step 3 lies within the second epoch
CLOSE = {"rel": 1e-4, "abs": 1e-5}  # of means of sums in fp32, added up in another order


class Recording(PreferenceTrainer):
    """Remembers the rows of each training micro-batch; None is a placeholder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.read: list[list[int | None]] = []

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        prompts = [example.prompt_ids.tolist() for example in self.train_dataset.examples]
        (row,) = inputs["batch"].rows
        found = [
            prompts.index(row.input_ids[0, slice(*packed.prompt)].tolist()) for packed in row.layout.prompts
        ]
        self.read.append(
            [i if real else None for i, real in zip(found, inputs["real"].tolist(), strict=True)]
        )
        return super().compute_loss(model, inputs, *args, **kwargs)


def other_model(device: torch.device | None = None) -> Any:
    """A reference's weights."""
    model = tiny_model(seed=3, initializer_range=0.1)
    model.set_attn_implementation(ATTENTION)
    return model


def trainer_on(
    folder: Path,
    parallel: SequenceParallel | None,
    kind: Any = Recording,
    load: Callable[[], Any] = other_model,
    **arguments: Any,
) -> Any:
    """Two epochs of DPO against a frozen reference."""
    return make_trainer(
        folder,
        method=DPO,
        reference=Frozen(load, partial(pair_logps, parallel=parallel)),
        rows=ROWS,
        kind=kind,
        parallel=parallel,
        **{"max_steps": -1, "num_train_epochs": EPOCHS, "gradient_accumulation_steps": 2} | arguments,
    )


def four(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """A run on two groups of two, a second one that goes on from its third step, and values on shards."""
    parallel = start_parallel("ulysses", 2)
    settings = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    saving = {"save_strategy": "steps", "save_steps": SAVED}
    unbroken = trainer_on(folder, parallel, **settings, **saving)
    held_out = unbroken.evaluate()
    unbroken.train()
    resumed = trainer_on(folder, parallel, **settings)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}"))
    return {
        "unbroken": unbroken.read,
        "resumed": resumed.read,
        "held out": held_out,
        "weights": weights(unbroken),
        "adapter off": adapter_off(parallel),
    }


def adapter_off(parallel: SequenceParallel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs of the rejected answers: without the adapter on shards and in one process, and with it."""
    base = tiny_model(initializer_range=0.1)
    base.set_attn_implementation(ATTENTION)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    randomise_lora_b(model)
    batch = pack([Rows(3, seed=2)[i] for i in range(3)])
    sharded = AdapterOff(model, partial(pair_logps, parallel=parallel))(model, batch)
    whole = AdapterOff(model, pair_logps)(model, batch)
    with torch.no_grad():
        policy = pair_logps(model, batch, parallel=parallel)
    return sharded.rejected, whole.rejected, policy.rejected


@pytest.fixture(scope="module")
def on_four(tmp_path_factory) -> list[dict[str, Any]]:
    return run_distributed(four, 4, tmp_path_factory.mktemp("groups"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Any:
    """The same in this process."""
    settings = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
    trainer = trainer_on(tmp_path_factory.mktemp("alone"), None, **settings)
    held_out = trainer.evaluate()
    trainer.train()
    return trainer, held_out


def test_ranks_of_a_group_read_the_same_rows_and_groups_different_ones(on_four):
    """Each row once an epoch, in an order of its own; three micro-batches an epoch on every rank."""
    first, first_too, second, second_too = (found["unbroken"] for found in on_four)
    assert first == first_too and second == second_too
    assert len(first) == len(second) == 3 * EPOCHS
    epochs = []
    for epoch in range(EPOCHS):
        span = slice(3 * epoch, 3 * epoch + 3)
        one, two = (list(chain(*read[span])) for read in (first, second))
        assert (one + two).count(None) == 1, "the ragged end has one placeholder"
        assert not {*one} & {*two} - {None}
        assert sorted(row for row in one + two if row is not None) == list(range(ROWS))
        epochs.append(one)
    assert epochs[0] != epochs[1]


def test_a_resumed_run_reads_on_where_the_other_had_been(on_four):
    """After step 3, the first of the second epoch, one micro-batch with the epoch's ragged end is left."""
    for found in on_four:
        assert found["resumed"] == found["unbroken"][-1:]
    assert any(None in found["resumed"][0] for found in on_four)


def test_evaluation_and_a_frozen_reference_on_shards_give_the_values_of_one_process(on_four, alone):
    """Before any training: loss, rewards against the reference and log-probs over the held-out rows."""
    _, expected = alone
    names = {
        "eval_loss",
        "eval_rewards/chosen",
        "eval_rewards/margins",
        "eval_logps/chosen",
        "eval_logps/rejected",
    }
    assert names <= expected.keys()
    assert expected["eval_rewards/margins"] != 0
    for found in on_four:
        for name in names:
            assert found["held out"][name] == pytest.approx(expected[name], **CLOSE), name


def test_training_on_groups_ends_with_the_weights_of_one_process(on_four, alone):
    trainer, _ = alone
    for found in on_four:
        assert_close(found["weights"], weights(trainer), tolerance=1e-5)


def test_the_adapter_off_reference_on_shards_gives_the_values_of_one_process(on_four):
    for found in on_four:
        sharded, whole, policy = found["adapter off"]
        torch.testing.assert_close(sharded, whole, rtol=1e-5, atol=1e-5)
        assert (policy - whole).abs().max() > 1e-2, "the adapter makes a difference"


class Fsdp2OnCpu(Recording):
    """accelerate leaves FSDP out on CPU; told that these processes have GPUs, it shards on CPU as it would there."""

    def create_accelerator_and_postprocess(self) -> None:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()


def fsdp2(rank: int, size: int, folder: Path) -> dict[str, torch.Tensor]:
    """The run under FSDP2, both processes one group; the whole weights."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    config = {"fsdp_version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True}
    trainer = trainer_on(
        folder,
        start_parallel("gather", size),
        Fsdp2OnCpu,
        lambda: load_reference(other_model, None, arguments=trainer.args, quantised=False),
        fsdp="full_shard auto_wrap",
        fsdp_config=config,
    )
    trainer.train()
    for model in (trainer.model_wrapped, trainer.reference.model):
        assert all(isinstance(weight, DTensor) for weight in model.parameters())
    return {name: weight.full_tensor() for name, weight in trainer.model_wrapped.named_parameters()}


def test_fsdp2_in_the_trainer_ends_with_the_weights_of_one_process(tmp_path, alone):
    """Clipping, accumulation, a split reference; `WrapperCheck` holds the wrapper against what was asked for."""
    trainer, _ = alone
    for found in run_distributed(fsdp2, 2, tmp_path):
        assert_close(found, {name: weights(trainer)[name] for name in found}, tolerance=1e-5)
