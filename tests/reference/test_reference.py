"""Reference log-probs in training: where they come from, on which context, cached or live, and what they cost."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import TrainingArguments

from align import cli
from align.adapters.lora import Lora
from align.core.errors import UserError
from align.longseq import pack, pair_logps
from align.models.identity import Identity
from align.models.settings import ModelSettings, RopeSettings
from align.reference import build as reference_build
from align.reference.cache import Cached, LogpStore
from align.reference.settings import ReferenceSettings, reference_model, resolve_source
from align.reference.sources import AdapterOff, Frozen, autocast_forward, sum_turns
from align.runs import exit_codes
from align.training.fill import fill
from align.training.method_settings import Needs
from align.training.methods import Method
from align.training.trainer import PreferenceTrainer
from losses import LossOutput, PairLogps, dpo_loss, longpo_loss
from tests.distributed import run_distributed
from tests.longseq.plain import assert_close, make_example, randomise_lora_b
from tests.reference.helpers import forwardable, refuse
from tests.rows import words as random_words
from tests.tiny import save_tiny

DPO = Method("dpo", partial(dpo_loss, beta=0.1), Needs("same", False, "none"))
LONGPO = Method(
    "longpo",
    partial(longpo_loss, beta=0.1, preference_weight=0.5, nll_weight=1.0),
    Needs("short", False, "sequence"),
)


# ---- which reference

SOURCES = [
    ({}, "same", True, "adapter_off"),
    ({}, "short", True, "adapter_off"),
    ({}, "same", False, "frozen"),
    ({}, "none", True, "none"),
    ({"source": "frozen"}, "none", True, "none"),
    ({"source": "frozen"}, "same", True, "frozen"),
    ({"model": "other"}, "same", True, "frozen"),
    ({"rope": "checkpoint"}, "short", True, "frozen"),
]


@pytest.mark.parametrize(("settings", "needs", "lora", "source"), SOURCES)
def test_source_follows_from_method_and_adapter(settings, needs, lora, source):
    assert (
        resolve_source(
            ReferenceSettings(**settings), needs=needs, adapter=Lora(r=4) if lora else None, method="dpo"
        )
        == source
    )


CONTRADICTIONS = [
    ({"source": "none"}, "same", True, "method=dpo needs a reference"),
    ({"source": "adapter_off"}, "same", False, "needs an adapter"),
    ({"source": "adapter_off", "model": "other"}, "same", True, "reference.model names another model"),
    ({"source": "adapter_off", "rope": "checkpoint"}, "same", True, "the policy's RoPE"),
    ({"source": "frosen"}, "same", True, "did you mean frozen"),
    ({"rope": "chekpoint"}, "same", True, "did you mean checkpoint"),
    ({"fill_only": True}, "same", True, "reference.cache=FOLDER"),
    ({"fill_only": True, "cache": "x"}, "none", True, "nothing to fill"),
]


@pytest.mark.parametrize(("settings", "needs", "lora", "sentence"), CONTRADICTIONS)
def test_contradictions_are_refused(settings, needs, lora, sentence):
    with pytest.raises(UserError) as error:
        resolve_source(
            ReferenceSettings(**settings), needs=needs, adapter=Lora(r=4) if lora else None, method="dpo"
        )
    assert sentence in str(error.value)


def test_reference_model_is_the_starting_one_unless_named():
    """Never an adapter; another model keeps the policy's dtype but not its revision; RoPE on demand."""
    policy = ModelSettings(
        path="start",
        revision="v1",
        dtype="float32",
        adapter=Lora(r=8),
        rope=RopeSettings(theta=1e7),
    )
    same = reference_model(ReferenceSettings(), policy)
    assert (same.path, same.revision, same.adapter, same.rope.theta) == ("start", "v1", None, 1e7)
    other = reference_model(ReferenceSettings(model="first", rope="checkpoint"), policy)
    assert (other.path, other.revision, other.dtype, other.rope) == ("first", None, "float32", RopeSettings())


def test_adapter_off_is_the_model_below_without_dropout():
    """In training mode, with an adapter that changes everything and dropout: the bare model's values."""
    batch = pack([make_example(np.random.default_rng(0), prompt=12, answers=[4, 3])])
    bare = forwardable(attention_dropout=0.5)
    expected = pair_logps(bare, batch)
    policy = get_peft_model(bare, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5))
    randomise_lora_b(policy)
    policy.train()
    reference = AdapterOff(policy, pair_logps)
    values = reference(policy, batch)
    assert torch.equal(values.chosen, expected.chosen)
    assert not values.chosen.requires_grad
    assert all(module.training for module in policy.modules())
    policy.eval()
    assert not torch.allclose(pair_logps(policy, batch).chosen, expected.chosen)
    assert reference.usage.tokens == batch.num_tokens


def test_reference_reads_in_the_policys_precision():
    batch = pack([make_example(np.random.default_rng(0), prompt=12, answers=[4, 3])])
    model = forwardable()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = pair_logps(model, batch)
    low = autocast_forward(pair_logps, torch.bfloat16)(model, batch)
    assert torch.equal(low.chosen, expected.chosen)
    assert low.chosen.dtype == torch.float64
    assert not torch.equal(low.chosen, autocast_forward(pair_logps, None)(model, batch).chosen)


def test_turns_add_up():
    """Three turns of two prompts: −1 − 2 and −4; the second rejected answer of prompt 1 is absent."""
    turns = PairLogps(
        chosen=torch.tensor([-1.0, -2.0, -4.0]),
        rejected=torch.tensor([[-1.0, -3.0], [-2.0, -3.0], [-5.0, 0.0]]),
        chosen_length=torch.tensor([1, 2, 3]),
        rejected_length=torch.tensor([[1, 1], [2, 2], [3, 0]]),
    )
    summed = sum_turns(turns, torch.tensor([0, 0, 1]), 2)
    assert summed.chosen.tolist() == [-3.0, -4.0]
    assert summed.rejected.tolist() == [[-3.0, -6.0], [-5.0, 0.0]]
    assert summed.chosen_length.tolist() == [3, 3]
    assert summed.rejected_length.tolist() == [[3, 3], [3, 0]]


# ---- in the trainer


class Rows(Dataset):
    """Random long rows, the first half with two turns on short contexts, the rest with one."""

    def __init__(self, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def short(answers):
            return make_example(rng, prompt=int(rng.integers(3, 7)), answers=answers)

        self.examples = []
        for i in range(count):
            answers = rng.integers(2, 9, 2)
            row = make_example(rng, prompt=int(rng.integers(20, 40)), answers=answers)
            turns = 2 if i < count // 2 else 1
            self.examples.append(replace(row, short=tuple(short(answers) for _ in range(turns))))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int):
        return self.examples[index]

    def short_tokens(self) -> int:
        return sum(turn.num_tokens for example in self.examples for turn in example.short)


def collate(examples, tokens_per_row=None):
    owner = [b for b, example in enumerate(examples) for _ in example.short]
    return {
        "batch": pack(examples, tokens_per_row=tokens_per_row),
        "short": pack([turn for e in examples for turn in e.short], tokens_per_row=tokens_per_row),
        "owner": torch.tensor(owner),
    }


def make_trainer(folder: Path, method, reference, *, tokens_per_row=None, model=None, **arguments):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return PreferenceTrainer(
        forwardable() if model is None else model,
        TrainingArguments(**(settings | arguments)),
        method=method,
        reference=reference,
        train_dataset=Rows(8),
        eval_dataset=Rows(3, seed=1),
        data_collator=partial(collate, tokens_per_row=tokens_per_row),
    )


def live(model) -> Frozen:
    return Frozen(lambda: model, pair_logps)


def behind_cache(folder: Path, reference) -> Cached:
    return Cached(reference, LogpStore(folder), Identity({"model": "tests"}))


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("method", [DPO, LONGPO], ids=lambda method: method.name)
def test_cached_run_is_the_live_run(tmp_path, method):
    """Four clipped SGD steps over two epochs: live, filling as it goes, and from the full cache alone."""
    reference = forwardable(seed=1)
    runs = [make_trainer(tmp_path / "live", method, live(reference))]
    runs.append(make_trainer(tmp_path / "fill", method, behind_cache(tmp_path / "cache", live(reference))))
    before = runs[0].evaluate()
    for run in runs:
        run.train()
    only = behind_cache(tmp_path / "cache", Frozen(refuse, pair_logps))
    runs.append(make_trainer(tmp_path / "only", method, only, tokens_per_row=1))
    runs[-1].train()
    for run in runs[1:]:
        assert_close(weights(run), weights(runs[0]), tolerance=1e-6)
        for one, other in zip(run.state.log_history[:4], runs[0].state.log_history[:4], strict=True):
            for name in ("loss", "grad_norm", "rewards/margins"):
                assert one[name] == pytest.approx(other[name], rel=1e-5), name
    assert only.usage.tokens == 0
    for again in range(2):  # the held-out rows are put in, then taken out
        model = behind_cache(
            tmp_path / "cache", live(reference) if again == 0 else Frozen(refuse, pair_logps)
        )
        metrics = make_trainer(tmp_path / "eval", method, model).evaluate()
        assert metrics["eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-6)


def test_longpos_reference_reads_its_short_contexts_and_nothing_else(tmp_path):
    """Two epochs live read them twice; behind a cache once, and the held-out rows' once more for evaluation."""
    rows, held_out = Rows(8).short_tokens(), Rows(3, seed=1).short_tokens()
    trainer = make_trainer(tmp_path / "a", LONGPO, live(forwardable(seed=1)))
    trainer.train()
    assert trainer.state.log_history[-1]["reference/tokens"] == 2 * rows
    assert trainer.state.log_history[-1]["reference/cached"] == 0
    assert trainer.state.log_history[0]["reference/tokens"] < rows
    cached = make_trainer(tmp_path / "b", LONGPO, behind_cache(tmp_path / "cache", live(forwardable(seed=1))))
    cached.evaluate()
    cached.train()
    cached.evaluate()
    last = cached.state.log_history[-1]
    assert last["reference/tokens"] == rows + held_out
    assert last["reference/cached"] == 12 + 4  # turns of the second epoch, and of the second evaluation
    assert last["reference/tokens"] < sum(example.num_tokens for example in Rows(8).examples)


def test_a_resumed_run_goes_on_counting(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    first = make_trainer(tmp_path, LONGPO, live(forwardable(seed=1)), **settings)
    first.args.max_steps = 2
    first.train()
    second = make_trainer(tmp_path, LONGPO, live(forwardable(seed=1)), **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert second.state.log_history[-1]["reference/tokens"] == 2 * Rows(8).short_tokens()


def test_a_policy_on_the_short_context_gets_its_reference_there_too(tmp_path):
    """`same` with `policy_short`: the reference scores both contexts."""
    seen = []

    def loss(policy: PairLogps, reference: PairLogps | None) -> LossOutput:
        seen.append((policy, reference))
        return LossOutput(policy.chosen, policy.chosen.detach(), policy.rejected.detach())

    model = forwardable()
    trainer = make_trainer(
        tmp_path, Method("both", loss, Needs("same", True, "none")), live(model), model=model
    )
    trainer.evaluate()
    policy, reference = seen[0]
    assert torch.equal(reference.chosen, policy.chosen)
    assert torch.equal(reference.short.chosen, policy.short.chosen)
    assert not torch.equal(reference.short.chosen, reference.chosen)


@pytest.mark.parametrize("method", [DPO, LONGPO], ids=lambda method: method.name)
def test_filling_alone_is_resumable_and_complete(tmp_path, method):
    """Broken off in the middle it goes on; afterwards a run with other batches needs no reference."""
    model = forwardable(seed=1)

    class KilledError(Exception):
        pass

    class Breaks(Frozen):
        def __call__(self, policy, batch):
            if self.usage.cached or self.usage.tokens > 150:
                raise KilledError
            return super().__call__(policy, batch)

    first = Breaks(lambda: model, pair_logps)
    trainer = make_trainer(tmp_path / "a", method, behind_cache(tmp_path / "cache", first), model=model)
    trainer.args.per_device_eval_batch_size = 1
    with pytest.raises(KilledError):
        fill(trainer, trainer.train_dataset, trainer.eval_dataset)
    second = behind_cache(tmp_path / "cache", Frozen(lambda: model, pair_logps))
    trainer = make_trainer(tmp_path / "b", method, second, model=model, per_device_eval_batch_size=2)
    counts = fill(trainer, trainer.train_dataset, None, trainer.eval_dataset)
    assert counts["prompts"] == 11
    short = method is LONGPO
    everything = sum(
        rows.short_tokens() if short else sum(example.num_tokens for example in rows.examples)
        for rows in (Rows(8), Rows(3, seed=1))
    )
    assert 0 < counts["tokens"] < everything
    again = fill(trainer, trainer.train_dataset, trainer.eval_dataset)
    assert again["tokens"] == counts["tokens"]
    only = behind_cache(tmp_path / "cache", Frozen(refuse, pair_logps))
    make_trainer(tmp_path / "c", method, only).train()


def fill_a_share(rank: int, size: int, folder: Path) -> tuple[dict[str, int], int]:
    reference = behind_cache(folder / "cache", Frozen(forwardable, pair_logps))
    trainer = make_trainer(folder, LONGPO, reference, per_device_eval_batch_size=2)
    return fill(trainer, trainer.train_dataset, trainer.eval_dataset), reference.usage.tokens


@pytest.mark.slow
def test_processes_share_out_the_filling(tmp_path):
    """Each of 11 prompts is read by one of two processes, a placeholder at the ragged end apart."""
    (counts, one), (same, two) = run_distributed(fill_a_share, 2, tmp_path)
    everything = Rows(8).short_tokens() + Rows(3, seed=1).short_tokens()
    assert counts == same
    assert counts["prompts"] == 11
    assert counts["tokens"] == one + two
    assert everything <= counts["tokens"] < 1.2 * everything
    assert min(one, two) > everything / 4
    only = behind_cache(tmp_path / "cache", Frozen(refuse, pair_logps))
    make_trainer(tmp_path / "train", LONGPO, only).train()


# ---- from the command line


@pytest.fixture
def align_train(monkeypatch, capfd, tmp_path):
    """Runs `align train` in this process on rows with short contexts; returns (exit code, stdout, stderr)."""
    model = tmp_path / "model"
    save_tiny(model)
    words = partial(random_words, np.random.default_rng(0))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps(
                {
                    "context": [words(20), words(15)],
                    "questions": [words(4), words(4)],
                    "chosens": [words(6), words(3)],
                    "rejecteds": [words(5), words(3)],
                    "short_prompts": [words(8), words(8)],
                }
            )
            + "\n"
            for _ in range(6)
        )
    )
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "align"))

    def call(*overrides: str) -> tuple[int, str, str]:
        base = [f"model.path={model}", f"data.path={rows}", "data.eval_size=2", "trainer.use_cpu=true"]
        monkeypatch.setattr(sys, "argv", ["align", "train", *base, *overrides])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return code, *capfd.readouterr()

    return call


def test_a_sweep_after_filling_loads_no_reference(align_train, monkeypatch, tmp_path):
    """Fill alone, which claims no output; then runs with another β, packing or LoRA never load the reference."""
    common = ["method=longpo", f"reference.cache={tmp_path / 'logps'}"]
    code, out, err = align_train(*common, f"output={tmp_path / '0'}", "reference.fill_only=true")
    assert code == 0, err
    assert "6 prompts" in out
    assert "filling the reference cache" in err
    assert "6/6" in err
    assert not (tmp_path / "0" / "config.yaml").exists()
    monkeypatch.setattr(reference_build, "frozen_model", lambda run: refuse())
    other = ["model.lora.r=4", "data.tokens_per_row=60", "reference.source=frozen", "method.loss.beta=0.3"]
    for name, overrides in (("0", []), ("1", other)):
        code, _, err = align_train(*common, f"output={tmp_path / name}", *overrides)
        assert code == 0, err
        costs = json.loads((tmp_path / name / "results.json").read_text())["training"]
        assert costs["reference/tokens"] == 0
        assert costs["reference/cached"] > 0


def test_short_context_that_is_missing_is_named(align_train, tmp_path):
    rows = tmp_path / "bare.jsonl"
    rows.write_text('{"prompt": "w9 w10", "chosen": "w11", "rejected": "w12"}\n' * 2)
    code, _, err = align_train("method=longpo", f"data.path={rows}", f"output={tmp_path / 'out'}")
    assert code == exit_codes.USAGE
    assert "bare.jsonl:1: the method reads the context made short" in err
