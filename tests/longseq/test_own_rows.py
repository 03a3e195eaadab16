"""Rows of their own (`model.attention=library`) give what any model says of a row by itself: sums and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    TrainingArguments,
    XLNetConfig,
    XLNetLMHeadModel,
)

import hydra_conf
from align.core.errors import UserError
from align.data.examples import Answer, TokenizedExample
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.forward import tokens_read
from align.longseq.own_rows import own_rows
from align.longseq.settings import MemorySettings
from align.longseq.support import check_config
from align.models.identity import Identity
from align.models.settings import LIBRARY
from align.models.structure import find_causal_lm, set_reading
from align.reference.cache import Cached, LogpStore
from align.reference.sources import AdapterOff, Frozen
from align.runs import checkpoints
from align.training.methods import Method, load_method
from align.training.trainer import PreferenceTrainer
from losses.types import PairLogps
from tests.distributed import run_distributed
from tests.longseq.plain import as_needed, assert_close, gradients, make_example, randomise_lora_b
from tests.longseq.sharded import Case, loss_of
from tests.longseq.wrapped import TOLERANCES, WRAPPERS, _worst, plain_training, trainable
from tests.tiny import tiny_model
from tests.training.helpers import DPO, make_trainer, weights

METHODS = sorted(path.stem for path in (Path(hydra_conf.__file__).parent / "method").glob("*.yaml"))
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# Own masks (MPT, BLOOM: ALiBi), soft caps over a short window, a factor on the logits, a body that calls its decoder
# past itself (OPT), states alone, states beside attention.
MODELS = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "cohere": SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "logit_scale": 0.3},
    "gemma2": SIZES
    | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6}
    | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2},
    "opt": SIZES | {"ffn_dim": 32, "word_embed_proj_dim": 32, "dropout": 0.0, "max_position_embeddings": 256},
    "recurrent_gemma": SIZES
    | {"num_hidden_layers": 3, "intermediate_size": 48, "lru_width": 32, "attention_window_size": 8},
}


def build(kind: str, *, seed: int = 0) -> nn.Module:
    """A tiny model with the attention that its class supports."""
    if kind == "llama":
        return tiny_model(seed=seed)
    settings = {"vocab_size": 128, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": None}
    config = CONFIG_MAPPING[kind](**settings, eos_token_id=3, tie_word_embeddings=False, **MODELS[kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def examples(jump: int = 0) -> list[TokenizedExample]:
    """Prompts with unlike numbers of answers; of the first chosen one two tokens are not scored."""
    rng = np.random.default_rng(0)
    sizes = ((13, (5, 3, 4)), (9, (2, 6)), (20, (7,)))
    rows = [make_example(rng, prompt=prompt, answers=answers, jump=jump) for prompt, answers in sizes]
    first = rows[0].answers[0]
    scored = first.scored.copy()
    scored[[0, 3]] = False
    rows[0] = replace(rows[0], answers=(Answer(first.input_ids, scored), *rows[0].answers[1:]))
    return rows


def one_by_one(model: nn.Module, rows: list[TokenizedExample], *, positions: bool = True) -> PairLogps:
    """Each answer behind its prompt in a row by itself, the model called as anybody would, and all its logits."""
    slots = max(len(row.answers) for row in rows)
    zero = torch.zeros((), dtype=torch.float64)
    sums, lengths, nll = [], torch.zeros(len(rows), slots, dtype=torch.long), []
    for b, row in enumerate(rows):
        sums.append([zero] * slots)
        for j, answer in enumerate(row.answers):
            ids = torch.as_tensor(np.concatenate([row.prompt_ids, answer.input_ids]))[None]
            after = row.position_ids[-1] + 1 + np.arange(len(answer.input_ids))
            given = {"position_ids": torch.as_tensor(np.concatenate([row.position_ids, after]))[None]}
            # With a mask, since jumps of positions would else be read as other sequences.
            given = given | {"attention_mask": torch.ones_like(ids)} if positions else {}
            logits = model(input_ids=ids, use_cache=False, **given).logits[0]
            logps = logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1).double()
            scored = torch.as_tensor(answer.scored)
            sums[b][j] = logps[len(row.prompt_ids) - 1 :][scored].sum()
            lengths[b, j] = int(scored.sum())
            if j == 0:
                nll.append(-logps.mean())
    table = torch.stack([torch.stack(row) for row in sums])
    return PairLogps(table[:, 0], table[:, 1:], lengths[:, 0], lengths[:, 1:], nll=torch.stack(nll))


def mixed(logps: PairLogps) -> Tensor:
    """A sum with another factor for every answer, so that each shows in the gradient."""
    factors = torch.linspace(0.1, 1.0, logps.rejected.numel()).view_as(logps.rejected)
    total = 0.3 * logps.chosen.sum() - (factors * logps.rejected).sum()
    return total if logps.nll is None else total + logps.nll.sum()


def assert_alike(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """As `assert_close`, but for gradients that are 0 but for rounding, as of a bias of the keys."""
    assert actual.keys() == expected.keys()
    least = 1e-6 * max(value.norm() for value in expected.values())
    for name, value in expected.items():
        assert (actual[name] - value).norm() <= tolerance * torch.maximum(value.norm(), least), name


def assert_same(
    model: nn.Module, rows: list[TokenizedExample], *, positions: bool = True, tolerance: float = 1e-9
) -> None:
    """Values and gradients of both ways, in fp64, with each scope of the NLL."""
    model = model.double().train()
    for scope in ("none", "chosen", "sequence"):
        actual = pair_logps(model, pack(rows, tokens_per_row=40), nll_scope=scope, chunk_size=3)
        expected = one_by_one(model, rows, positions=positions)
        nll = {"none": None, "chosen": -expected.chosen / expected.chosen_length, "sequence": expected.nll}
        expected = replace(expected, nll=nll[scope])
        for name, value in vars(expected).items():
            torch.testing.assert_close(getattr(actual, name), value, rtol=tolerance, atol=tolerance)
        assert_alike(gradients(model, mixed(actual)), gradients(model, mixed(expected)), tolerance)


@pytest.mark.parametrize("kind", ["llama", *MODELS])
def test_values_and_gradients_are_the_models_own(kind):
    # Mamba rounds its logits to fp32, and so the log-probs that either way makes of them.
    tolerance = 1e-6 if kind == "mamba" else 1e-9
    assert_same(build(kind), examples(), positions=kind in ("llama", "gpt2"), tolerance=tolerance)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere"])
def test_positions_with_jumps(kind):
    assert_same(build(kind), examples(jump=50))


def test_positions_that_a_model_does_not_take_are_refused():
    with pytest.raises(UserError, match="MambaForCausalLM takes no positions"):
        pair_logps(build("mamba"), pack(examples(jump=50)))


def test_rows_and_tokens_that_are_read():
    """Three prompts with 3, 2 and 1 answers: six rows; each prompt counts as often as it has answers."""
    batch = pack(examples())
    rows = own_rows(batch)
    assert [row.input_ids.shape[1] for row in rows] == [18, 16, 17, 11, 15, 27]
    assert tokens_read(build("mamba"), batch) == sum(row.input_ids.shape[1] for row in rows) == 104
    assert batch.num_tokens == 69
    shared = tiny_model()
    shared.set_attn_implementation(ATTENTION)
    assert tokens_read(shared, batch) == 69


def test_equal_to_the_shared_prefix():
    """Where a model can do both: Llama, whose norms are fp32 in any model."""
    own, shared = tiny_model().double().train(), tiny_model().double().train()
    shared.set_attn_implementation(ATTENTION)
    found = [
        mixed(pair_logps(model, pack(examples(jump=9)), nll_scope="sequence")) for model in (own, shared)
    ]
    assert_close(gradients(own, found[0]), gradients(shared, found[1]), tolerance=1e-6)


def longrope(factor: float) -> nn.Module:
    """A Phi-3 that stretches its frequencies by `factor` in rows beyond 16 tokens."""
    config = tiny_model("phi3").config
    config.original_max_position_embeddings = 16
    factors = {"short_factor": [1.0] * 8, "long_factor": [factor] * 8}
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 16,
    }
    config.rope_parameters |= factors
    check_config(config, attention="library")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def test_longrope_depends_on_the_row_alone():
    """A short row beside one beyond the original window has the bits that it has by itself."""
    short, long = examples()[1:]
    assert len(short.prompt_ids) + 6 <= 16 < len(long.prompt_ids)
    model = longrope(4.0)
    alone = [pair_logps(model, pack([row])).chosen[0] for row in (short, long, short)]
    assert torch.equal(pair_logps(model, pack([long, short])).chosen, torch.stack([alone[1], alone[0]]))
    assert torch.equal(alone[0], alone[2])
    other = [pair_logps(longrope(1.0), pack([row])).chosen[0] for row in (short, long)]
    assert torch.equal(other[0], alone[0]) and not torch.equal(other[1], alone[1])


def test_dynamic_rope_stays_refused():
    config = tiny_model().config
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(UserError, match="dynamic RoPE, which scales by the longest position read so far"):
        check_config(config, attention="library")


# ---- memory levers


@pytest.mark.parametrize(
    ("mode", "offload"), [("full", "none"), ("keep_attention", "none"), ("full", "disk")]
)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "mamba", "gpt2"])
def test_checkpointing_keeps_the_gradients(kind, mode, offload):
    plain, levered = (build(kind).double().train() for _ in range(2))
    apply_checkpointing(levered, mode, offload=offload)
    batch = pack(examples())
    expected, actual = (mixed(pair_logps(model, batch, chunk_size=4)) for model in (plain, levered))
    assert torch.equal(actual, expected)
    assert_close(gradients(levered, actual), gradients(plain, expected), tolerance=1e-12)


# ---- references and methods


@pytest.mark.parametrize("kind", ["gemma2", "mamba"])
def test_the_adapter_off_is_the_model_without_it(kind):
    """To the last bit: with a new adapter a margin at step 0 is 0."""
    base = build(kind).train()
    batch = pack(examples())
    expected = pair_logps(base, batch)
    targets = ["q_proj", "v_proj"] if kind == "gemma2" else ["in_proj", "x_proj"]
    policy = get_peft_model(base, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    randomise_lora_b(policy)
    assert not torch.equal(pair_logps(policy, batch).chosen, expected.chosen)
    reference = AdapterOff(policy, pair_logps)
    found = reference(policy, batch)
    assert torch.equal(found.chosen, expected.chosen) and torch.equal(found.rejected, expected.rejected)
    assert reference.usage.tokens == 104


def test_a_cache_gives_what_the_frozen_model_gave(tmp_path):
    live = Frozen(lambda: build("mamba"), pair_logps)
    batch = pack(examples())
    store = LogpStore(tmp_path)
    first, second = (Cached(live, store, Identity({"model": "tests"}))(None, batch) for _ in range(2))
    again = Cached(live, LogpStore(tmp_path), Identity({"model": "tests"}))(
        None, pack(examples(), tokens_per_row=1)
    )
    expected = live(None, batch)
    for found in (first, second, again):
        assert torch.equal(found.chosen, expected.chosen) and torch.equal(found.rejected, expected.rejected)


@cache
def method(name: str) -> Method:
    return load_method(OmegaConf.load(Path(hydra_conf.__file__).parent / "method" / f"{name}.yaml"))


def needed(name: str, rows: list[TokenizedExample]) -> dict:
    """A batch as a method needs it, with the same answers behind the last four tokens of their prompts."""
    rng, needs = np.random.default_rng(3), method(name).needs
    rows = [as_needed(rng, row, needs) for row in rows]
    turns = [
        replace(row, prompt_ids=row.prompt_ids[-4:], position_ids=np.arange(4), chunk_spans=())
        for row in rows
    ]
    return {
        "batch": pack(rows, fronts=needs.fronts),
        "short": pack(turns),
        "owner": torch.arange(len(rows)),
    }


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(tmp_path, name):
    check_two_steps(tmp_path, name, build("gemma2"), "library")


def check_two_steps(folder: Path, name: str, model: nn.Module, attention: str) -> None:
    """Two steps of a method; a margin against the starting model is 0 before the first, to the last bit."""
    trainer = make_trainer(
        folder,
        method=method(name),
        model=model,
        attention=attention,
        collator=partial(needed, name),
        max_steps=2,
    )
    start = weights(trainer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert any(not torch.equal(value, start[key]) for key, value in weights(trainer).items())
    if trainer.method.needs.reference == "same":
        assert trainer.state.log_history[0]["rewards/margins"] == 0.0


def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(tmp_path):
    check_resumed(tmp_path, partial(build, "mamba"), "library")


def check_resumed(tmp_path: Path, make: Callable[[], nn.Module], attention: str) -> None:
    """Four steps, and two with two more from their checkpoint."""

    def trainer(folder: str) -> PreferenceTrainer:
        return make_trainer(
            tmp_path / folder,
            method=DPO,
            model=make(),
            attention=attention,
            max_steps=4,
            save_strategy="steps",
            save_steps=2,
        )

    whole = trainer("whole")
    whole.train()
    broken = trainer("broken")
    broken.args.max_steps = 2
    broken.train()
    resumed = trainer("broken")
    resumed.train(resume_from_checkpoint=str(checkpoints.last_good(tmp_path / "broken")))
    assert resumed.state.global_step == 4
    assert weights(resumed).keys() == weights(whole).keys()
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(resumed).items())


# ---- what is refused


def test_an_encoder_is_refused():
    config = BertConfig(
        vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    with pytest.raises(UserError, match="BertLMHeadModel is an encoder as it is configured"):
        pair_logps(BertLMHeadModel(config), pack(examples()))


def test_a_model_that_reads_both_ways_is_refused_in_its_first_forward():
    """XLNet's configuration does not say it."""
    config = XLNetConfig(vocab_size=32, d_model=16, n_layer=1, n_head=2, d_inner=16, initializer_range=0.2)
    with pytest.raises(UserError, match="XLNetLMHeadModel is not causal"):
        pair_logps(XLNetLMHeadModel(config), pack(examples()))


def test_a_trainer_of_a_model_that_cannot_share_names_the_argument(tmp_path):
    with pytest.raises(UserError, match="set attention=library to read a row for each answer"):
        make_trainer(tmp_path, model=build("bloom"))


def test_a_trainer_takes_the_librarys_attention_also_of_a_model_that_has_ours(tmp_path):
    model = tiny_model()
    model.set_attn_implementation(ATTENTION)
    trainer = make_trainer(tmp_path, model=model, attention="library", max_steps=1)
    assert model.config._attn_implementation == "sdpa"
    trainer.train()
    assert trainer.state.total_flos == 6 * sum(p.numel() for p in model.parameters()) * sum(
        tokens_read(model, pack([row])) for row in first_rows(trainer)
    )


def first_rows(trainer) -> list[TokenizedExample]:
    """Of the only step."""
    order = list(trainer._get_train_sampler())
    return [trainer.train_dataset[i] for i in order[:4]]


def test_tiles_are_refused(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    memory = MemorySettings(mlp_chunk=8)
    with pytest.raises(UserError, match=r"memory\.mlp_chunk=8 cuts layers at our attention"):
        PreferenceTrainer(build("mamba"), arguments, method="simpo", attention="library", memory=memory)


# ---- wrappers

# The first group reads four rows, the second one five.
UNLIKE = ((20, (7, 3)), (40, (5, 6, 2)), (18, (2, 4)), (30, (8, 2)))


def wrapped(rank: int, size: int, names: list[str], attention: str) -> dict[str, dict[str, float]]:
    """Errors of three clipped steps in each wrapper, against padded rows in one process."""
    case = Case(rows=UNLIKE, nll_scope="sequence", checkpointing="full")
    expected = plain_training(case)
    batch = case.batch(rank, size)
    assert len(own_rows(batch)) == (4, 5)[rank]

    def forward(called: nn.Module) -> PairLogps:
        return pair_logps(called, batch, nll_scope="sequence", chunk_size=3)

    found = {}
    for name in names:
        model = case.build("sdpa")
        set_reading(model, attention)
        assert find_causal_lm(model).config._attn_implementation == "sdpa"
        start = {key: value.detach().clone() for key, value in trainable(model).items()}
        case.apply_memory(model)
        step, read = WRAPPERS[name](model)
        losses, gradients_of = zip(
            *(step(lambda called: loss_of(forward(called))) for _ in range(3)), strict=True
        )
        loss = torch.tensor(losses[0], dtype=torch.float64)
        dist.all_reduce(loss)
        moved, wanted = (
            {key: run[key] - start[key] for key in start} for run in (read(), expected["weights"])
        )
        found[name] = {
            "loss": abs(loss.item() / size - expected["loss"]) / abs(expected["loss"]),
            "gradient": _worst(gradients_of[0], expected["gradients"]),
            "update": _worst(moved, wanted),
        }
    return found


def test_ddp_and_fsdp_with_unlike_numbers_of_rows():
    check_wrappers(["ddp", "fsdp2"], LIBRARY)


@pytest.mark.slow
def test_zero_with_unlike_numbers_of_rows():
    pytest.importorskip("deepspeed")
    check_wrappers(["zero3"], LIBRARY)


def check_wrappers(names: list[str], attention: str) -> None:
    for found in run_distributed(wrapped, 2, names, attention):
        assert list(found) == names
        for name, errors in found.items():
            for what, error in errors.items():
                assert error <= TOLERANCES[what], f"{name}: {what} off by {error:.2e}"
