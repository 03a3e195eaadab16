"""What lives as long as the run, by wrapper and optimizer, and what wrappers send."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainingArguments

from align.core.errors import UserError
from align.distributed.names import WRAPPERS
from align.longseq.settings import MemorySettings
from align.models.settings import ModelSettings
from align.planning import fit
from align.planning.architecture import Architecture, measure, read_config
from align.planning.job import Job, Precision, Rows
from align.planning.settings import OPTIMIZERS
from align.planning.states import states
from align.planning.time import step_time, wrapper_bytes
from align.reference.settings import ReferenceSettings
from align.training import trainer_values
from tests.planning.plans import plan


def llama() -> Architecture:
    settings = ModelSettings(path="meta-llama/Meta-Llama-3-8B-Instruct")
    return measure(read_config(settings)[0], settings)


def test_deepspeed_s_states_and_traffic():
    """Llama-3-8B in bf16 on 8 GPUs: 12 bytes of optimizer and 4 of gradient each, whatever DeepSpeed is told of bf16.

    What a GPU sends in 64 micro-batches over 15/16: ZeRO-1 2·G + T, ZeRO-2 2·64·G + T, G and T 2 bytes each.
    """
    sizes, each = llama(), 8_030_261_248
    low, mixed = (Job(Rows(9, (9,)), one, accumulation=64) for one in (Precision(2), Precision(4, True)))
    for job, gradient in ((low, 4), (mixed, 2)):
        found = states(sizes, job, "zero2", 8)
        assert found.optimizer == 12 * each / 8
        assert found.weights == 2 * each
        assert found.gradients == gradient * each / 8
    assert wrapper_bytes(sizes, mixed, "zero1", 16) == pytest.approx((2 + 1) * 2 * each * 15 / 16)
    assert wrapper_bytes(sizes, mixed, "zero2", 16) == pytest.approx((2 * 64 + 1) * 2 * each * 15 / 16)


def test_the_reference_is_in_the_policy_s_types():
    """With `trainer.bf16` DeepSpeed and FSDP2 cast the policy's weights, and so the reference's; DDP does not."""
    sizes = llama()
    job = Job(Rows(9, (9,)), Precision(4, autocast=True), reference="frozen", reference_sharding="none")
    each = {wrapper: states(sizes, job, wrapper, 8).reference / 8_030_261_248 for wrapper in WRAPPERS}
    assert each == {wrapper: 4 if wrapper in ("none", "ddp") else 2 for wrapper in WRAPPERS}


def test_reducing_in_every_micro_batch_costs():
    """Two machines, 64 micro-batches: ZeRO-2's sums take longer than ZeRO-1's, and it is not what is recommended."""
    words = ("model=llama3_8b", "model.dtype=float32", "trainer.bf16=true", "rows.prompt=8000")
    made = plan(*words, "gpus.count=16", "gpus.nodes=2")
    assert made.best is not None
    assert made.best.strategy.wrapper == "zero1"
    second = replace(made.best.strategy, wrapper="zero2")
    assert step_time(made.sizes, made.best.job, second, made.machine).wrapper > 30 * made.best.time.wrapper


def test_a_wrapper_that_the_table_lacks_is_refused():
    with pytest.raises(UserError, match="wrapper=fsdp9 is not known"):
        states(llama(), Job(Rows(9, (9,)), Precision()), "fsdp9", 8)


@pytest.mark.parametrize(
    "name", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
)
def test_what_an_optimizer_keeps(name, tmp_path):
    """Bytes of its state after a step over those of the weights; Adafactor's rows and columns are a hundredth."""
    model = torch.nn.Linear(256, 256, bias=False)
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=name, use_cpu=True, report_to="none")
    kind, keywords = Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer = kind(model.parameters(), **keywords)
    model(torch.ones(1, 256)).sum().backward()
    optimizer.step()
    kept = [each for state in optimizer.state.values() for each in state.values() if torch.is_tensor(each)]
    slots, each = OPTIMIZERS[name]
    assert each is None
    assert sum(t.nbytes for t in kept) / model.weight.nbytes == pytest.approx(slots, abs=0.02)


def test_training_says_that_it_does_not_look(monkeypatch, capfd):
    """With an optimizer that nothing is known of a run goes on, with one line; `memory=auto` cannot choose."""
    monkeypatch.setattr(fit, "data_lengths", lambda data, needs, *, prompts: Rows(9, (9,)))
    arguments = SimpleNamespace(
        optim="lomo", device=torch.device("cpu"), per_device_train_batch_size=1, process_index=0
    )
    needs = SimpleNamespace(reference="none", short=False)
    run = SimpleNamespace(
        memory=MemorySettings(),
        arguments=arguments,
        method=SimpleNamespace(needs=needs, name="logo"),
        model=ModelSettings(),
        reference=ReferenceSettings(),
    )
    assert fit.fit_memory(run, None) == MemorySettings()
    assert "whether it fits this machine is not looked at: trainer.optim=lomo" in capfd.readouterr().err
    run.memory = MemorySettings(choose="auto")
    with pytest.raises(UserError, match=r"trainer\.optim=lomo"):
        fit.fit_memory(run, None)


def test_every_optimizer_is_the_librarys():
    known = {name for names in trainer_values.OPTIMIZERS.values() for name in names}
    assert set(OPTIMIZERS) < known
