"""How often a micro-batch waits for the device: once, where its step ends, and nowhere else.

Every wait leaves a GPU without work until the CPU has handed it the next kernels. On a CPU a stand-in counts them, by
operators and by names; on a GPU torch does.
"""

from __future__ import annotations

import math
import pickle
import warnings
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import TrainingArguments

import hydra_conf
from align.data.examples import TokenizedExample
from align.longseq import ATTENTION, SharedPrefixBatch, pack, pair_logps
from align.longseq.parallel import SequenceParallel, start_parallel
from align.longseq.settings import MemorySettings
from align.models.identity import Identity
from align.models.structure import set_reading
from align.reference.cache import Cached, LogpStore
from align.reference.sources import Frozen
from align.training.methods import Method, load_method
from align.training.sampling import DigestingCollator, MarkedCollator
from align.training.trainer import PreferenceTrainer
from tests.device import DEVICE, StandIn
from tests.distributed import run_distributed
from tests.longseq.balanced import mixture
from tests.longseq.plain import as_needed, make_example
from tests.tiny import tiny_model
from tests.training import helpers

NAMES = sorted(file.stem for file in (Path(hydra_conf.__file__).parent / "method").glob("*.yaml"))


@cache
def method(name: str) -> Method:
    return load_method(OmegaConf.load(Path(hydra_conf.__file__).parent / "method" / f"{name}.yaml"))


def examples(count: int = 4) -> list[TokenizedExample]:
    """Rows of unlike sizes with two rejected answers and short contexts; the first has two turns."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        row = make_example(rng, prompt=int(rng.integers(8, 24)), answers=(4, 3 + i, 5))
        short = tuple(make_example(rng, prompt=5, answers=(3, 2, 4)) for _ in range(2 if i == 0 else 1))
        rows.append(replace(row, short=short))
    return rows


def collated(tokens_per_row: int | None = 70, name: str = "logo") -> dict:
    """A micro-batch for a method as a loader's worker makes it; the third row is a placeholder."""
    rng = np.random.default_rng(1)
    needed = [as_needed(rng, row, method(name).needs) for row in examples()]

    def collate(rows: list[TokenizedExample]) -> dict:
        turns = [turn for row in rows for turn in row.short]
        return {
            "batch": pack(rows, tokens_per_row=tokens_per_row, fronts=method(name).needs.fronts),
            "short": pack(turns, tokens_per_row=tokens_per_row),
            "owner": np.array([b for b, row in enumerate(rows) for _ in row.short]),
            "sources": [f"rows:{i}" for i in range(len(rows))],
        }

    marked = MarkedCollator(DigestingCollator(collate))
    return marked(list(zip(needed, [True, True, False, True], strict=True)))


def make_trainer(
    folder: Path,
    name: str,
    *,
    store: Path | None = None,
    parallel: SequenceParallel | None = None,
    attention: str = "sdpa",
    device: str = "cpu",
) -> PreferenceTrainer:
    """Of a tiny model; the reference is another one, live or behind a cache."""

    def model(seed: int) -> torch.nn.Module:
        made = tiny_model(initializer_range=0.1, seed=seed)
        made.set_attn_implementation(ATTENTION if attention == "sdpa" else "sdpa")
        set_reading(made, attention)
        return made.to(device)

    other = model(1)
    live = Frozen(lambda: other, partial(pair_logps, parallel=parallel))
    return PreferenceTrainer(
        model(0),
        TrainingArguments(
            output_dir=str(folder), report_to=[], use_cpu=device == "cpu", remove_unused_columns=False
        ),
        method=method(name),
        reference=live if store is None else Cached(live, LogpStore(store), Identity({"model": "tests"})),
        parallel=parallel,
        attention=attention,
        logits_chunk=8,
        data_collator=lambda rows: rows,
    )


def micro_batches(trainer: PreferenceTrainer, device: StandIn, batches: list[dict]) -> list[list[str]]:
    """What each micro-batch of one step waited for: from the loader's move to the end of the backward pass."""
    device.hold(trainer.model)
    if trainer.reference is not None:
        device.hold(getattr(trainer.reference, "live", trainer.reference).model)
    found = []
    with device:
        moved = [send_to_device(batch, DEVICE) for batch in batches]
        total = trainer._get_num_items_in_batch(moved, DEVICE)
        assert not device.waits, device.places
        for number, batch in enumerate(moved):
            device.waits.clear()
            trainer.accelerator.gradient_state._set_sync_gradients(number == len(batches) - 1)
            inputs = trainer._prepare_inputs(batch)
            loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=total)
            loss.backward()
            found.append(list(device.waits))
    return found


CHECK = ["tolist"]  # whether the step's losses are finite


@pytest.mark.parametrize("name", NAMES)
def test_a_step_waits_once(name, tmp_path):
    """Of two micro-batches the first never, the last for the check of the step's losses; whatever the method needs."""
    device = StandIn()
    batches = [collated(name=name), collated(None, name)]
    found = micro_batches(make_trainer(tmp_path, name), device, batches)
    assert found == [[], CHECK], device.places


LEVERS = {
    "full": MemorySettings(checkpointing="full"),
    "attention kept, tiles": MemorySettings(checkpointing="keep_attention", mlp_chunk=9, logits_chunk=4),
}
WINDOWED = {"num_attention_heads": 9, "num_key_value_heads": 3, "sliding_window": 6, "head_dim": 8}


@pytest.mark.parametrize("lever", LEVERS)
def test_memory_levers_and_windows_wait_no_more(lever, tmp_path):
    """Recomputed layers and tiles, and a layer's window, are told by the layout, which the host has."""
    model = tiny_model("mistral", initializer_range=0.1, **WINDOWED)
    trainer = PreferenceTrainer(
        model,
        TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False),
        method=method("logo"),
        memory=LEVERS[lever],
        data_collator=lambda rows: rows,
    )
    device = StandIn()
    found = micro_batches(trainer, device, [collated(), collated(None)])
    assert found == [[], CHECK], device.places


def test_a_run_waits_twice_a_step(tmp_path, monkeypatch):
    """Through the Trainer's own loop and loader: for the losses and the gradient's norm; and where a log is written."""
    device = StandIn()
    reference = device.hold(tiny_model(initializer_range=0.1, seed=1))
    reference.set_attn_implementation(ATTENTION)
    trainer = helpers.make_trainer(
        tmp_path,
        method=helpers.DPO,
        reference=Frozen(lambda: reference, pair_logps),
        rows=16,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
        logging_steps=2,
    )
    monkeypatch.setattr(TrainingArguments, "device", property(lambda self: DEVICE))
    monkeypatch.setattr(trainer.accelerator.state, "device", DEVICE)
    device.hold(trainer.model)
    with device:
        trainer.train()
    step, log = ["tolist", "_local_scalar_dense"], ["tolist"]
    assert device.ours == [*step, *step, *log] * 2, device.places
    logs = 2
    library = len(device.waits) - len(device.ours)
    assert library <= 2 * logs + 2, device.places  # each log, the run's start and its end
    device.ours.clear()
    monkeypatch.setattr(trainer.accelerator.state, "device", DEVICE)  # `train` has made another accelerator
    with device:
        measured = trainer.evaluate()
    assert device.ours == ["tolist", "cpu"], (
        device.places
    )  # whether its losses are finite, and the table of all rows
    assert math.isfinite(measured["eval_loss"])


def test_a_cached_reference_waits_for_what_it_writes(tmp_path):
    """Log-probs that are computed are read once, to be written; those of the cache never."""
    for expected in (["tolist", *CHECK], CHECK):
        device = StandIn()
        trainer = make_trainer(tmp_path, "dpo", store=tmp_path / "cache")
        assert micro_batches(trainer, device, [collated()]) == [expected], device.places


@pytest.mark.parametrize("attention", ["library", "masked"])
def test_the_librarys_attention_waits_no_more(attention, tmp_path):
    """Its first batch is checked; see `_check_apart` and `check_causal`."""
    trainer = make_trainer(tmp_path, "longpo", attention=attention)
    trainer.prompt_losses(trainer.model, collated())
    device = StandIn()
    assert micro_batches(trainer, device, [collated()]) == [CHECK], device.places


def test_routers_are_counted_in_one_wait(tmp_path):
    """The load-balancing loss looks whether every token was routed; the library's experts wait by themselves."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False
    )
    model = mixture("mixtral").build(ATTENTION)
    trainer = PreferenceTrainer(
        model, arguments, method=method("logo"), balance=0.01, data_collator=lambda rows: rows
    )
    device = StandIn()
    micro_batches(trainer, device, [collated()])
    assert device.ours == ["_local_scalar_dense", *CHECK], device.places


def test_logs_wait_when_they_are_read(tmp_path):
    """Metrics are added up on the device, also beside a placeholder; a log reads them in one."""
    device = StandIn()
    trainer = make_trainer(tmp_path, "logo")
    micro_batches(trainer, device, [collated()])
    device.waits.clear()
    with device:
        logs = trainer._log.pop([])
    assert device.waits == ["tolist"]
    assert logs["num_tokens"] == sum(row.num_tokens for i, row in enumerate(examples()) if i != 2)


def shared(rank: int, size: int, folder: Path) -> dict[str, list[list[str]]]:
    """Of both exchanges: what micro-batches wait for where two processes share a row, bare and inside DDP."""
    found = {}
    for kind in ("ulysses", "gather"):
        for name in ("dpo", "longpo"):
            device = StandIn()
            trainer = make_trainer(folder, name, parallel=start_parallel(kind, size))
            found[f"{kind} {name}"] = micro_batches(trainer, device, [collated(), collated(None)])
    # DDP calls its modules' collectives in each forward, so that processes agree on the calls.
    device = StandIn()
    trainer = make_trainer(folder, "logo", parallel=start_parallel("ulysses", size))
    wrapped = DistributedDataParallel(trainer.model)
    device.hold(wrapped)
    with device:
        inputs = send_to_device(collated(), DEVICE)
        trainer.accelerator.gradient_state._set_sync_gradients(False)
        trainer.compute_loss(wrapped, inputs)
    return found | {"ulysses, DDP": [device.waits, CHECK]}


def test_processes_that_share_a_row_wait_no_more(tmp_path):
    """Rows are compared by digests on the host, shards are cut out there."""
    for found in run_distributed(shared, 2, tmp_path):
        assert found
        assert all(waits == [[], CHECK] for waits in found.values()), found


# ---- the stand-in itself


def test_the_stand_in_finds_what_waits():
    """Each of these stops a CPU on a GPU, by torch's own list (`torch.cuda.set_sync_debug_mode`)."""
    device = StandIn()
    with device:
        values = torch.arange(6.0).to(DEVICE, non_blocking=True)
        assert values.device == DEVICE
        assert not device.waits
        for waits in (
            lambda: values[0].item(),
            lambda: bool((values > 2).any()),
            lambda: values[values > 2],
            lambda: values.nonzero(),
            lambda: values.tolist(),
            lambda: values.cpu(),
            lambda: values.to("cpu"),
            lambda: values.numpy(),
            lambda: torch.tensor([1.0], device=DEVICE),
            lambda: torch.ones(6).to(DEVICE),
            lambda: values[torch.tensor([0, 1])],
            lambda: torch.equal(values, values),
            lambda: torch.zeros(6).copy_(values),
        ):
            device.waits.clear()
            waits()
            assert len(device.waits) == 1, device.waits
        device.waits.clear()
        other = torch.zeros(6, device=values.device)
        assert other in device
        assert (values + 1) in device
        assert values[torch.arange(2, device=DEVICE)] in device
        assert not device.waits
        with pytest.raises(AssertionError, match="add of a tensor of the device beside one of the host"):
            values + torch.ones(6)
        assert values.cpu() not in device


# ---- one tensor


def test_a_batch_is_one_tensor_wherever_it_goes():
    """Packed, moved, and handed on by a worker: its rows' tensors are views of `flat`, and the same numbers."""
    batch = pack(examples(), tokens_per_row=70)
    assert len(batch.rows) > 1
    device = StandIn()
    with device:
        moved = batch.to(DEVICE)
        assert device.copies == 1
        assert [row.host is own for row, own in zip(moved.rows, batch.rows, strict=True)] == [True] * len(
            batch.rows
        )
        assert moved.to("cpu").rows == batch.rows
    for other in (moved, pickle.loads(pickle.dumps(batch))):
        assert other.flat is not None
        for row, own in zip(other.rows, batch.rows, strict=True):
            assert row.layout == own.layout
            for name, value in vars(own).items():
                if isinstance(value, Tensor):
                    assert torch.equal(getattr(row, name), value)
                    assert getattr(row, name).untyped_storage()._cdata == other.flat.untyped_storage()._cdata


def test_a_loaders_worker_hands_on_one_tensor_and_the_digest():
    """What it packs and digests arrives as it is, `real` and `owner` as arrays, which no loader moves."""
    loader = DataLoader(range(2), collate_fn=lambda numbers: collated(), num_workers=1)
    (inputs,) = list(loader)[:1]
    batch, expected = inputs["batch"], collated()["batch"]
    assert batch.known_digest == expected.known_digest is not None
    assert torch.equal(batch.flat, expected.flat)
    assert batch.rows[-1].target.untyped_storage()._cdata == batch.flat.untyped_storage()._cdata
    device = StandIn()
    with device:
        moved = send_to_device(inputs, DEVICE)
    assert moved["batch"].known_digest == expected.known_digest
    assert not device.waits
    assert moved["real"].tolist() == [True, True, False, True]
    assert moved["owner"].tolist() == [0, 0, 1, 2, 3]


def test_digests_tell_rows_apart():
    """Equal rows have one, wherever they are and however they came there; any other token, span or position another."""
    batch = pack(examples(), tokens_per_row=70)
    assert batch.known_digest is None
    digest = batch.digested().known_digest
    assert digest == batch.digest == pack(examples(), tokens_per_row=70).digest
    assert pickle.loads(pickle.dumps(batch.digested())).known_digest == digest
    assert SharedPrefixBatch(batch.rows).digest == digest
    others = {pack(examples(), tokens_per_row=60).digest, pack(examples(3), tokens_per_row=70).digest}
    for name in ("input_ids", "position_ids", "predictor", "target", "context_target"):
        first, *rest = batch.rows
        changed = getattr(first, name).clone()
        changed.view(-1)[1] += 1
        others.add(SharedPrefixBatch((replace(first, **{name: changed}), *rest)).digest)
    assert len(others - {digest}) == 7
    assert -(2**63) <= digest < 2**63


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ["logo", "dpo", "longpo", "sft"])
def test_on_a_gpu(name, tmp_path):
    """torch warns of every call that waits: two micro-batches of a step, the second with the check of the losses."""
    trainer = make_trainer(tmp_path, name, device="cuda")

    def waits(last: bool) -> list[str]:
        pinned = {
            key: value.pin_memory() if key in ("batch", "short") else value
            for key, value in collated().items()
        }
        assert pinned["batch"].flat.is_pinned()
        trainer.accelerator.gradient_state._set_sync_gradients(last)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                inputs = trainer._prepare_inputs(send_to_device(pinned, torch.device("cuda", 0)))
                trainer.compute_loss(trainer.model, inputs, num_items_in_batch=6).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found = [each for each in said if "synchronizing" in str(each.message)]
        return [f"{each.filename}:{each.lineno}" for each in found]

    waits(True)  # the first time kernels are loaded and probes run
    for last in (False, True):
        found = waits(last)
        assert len(found) <= 2, found
