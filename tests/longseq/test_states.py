"""Layers that keep a state: the prompt's state is computed once, and every answer goes on from it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from align.core.errors import AlignWarning, UserError
from align.data.examples import TokenizedExample
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.prepared import prepare
from align.longseq.probe import check_computed
from align.longseq.shared_prefix import Layout, PackedPrompt
from align.longseq.states import prepare_states, state_mixers
from align.longseq.support import check_degree, check_supported
from align.models.structure import find_causal_lm
from losses import logo_loss
from losses.types import PairLogps
from tests.longseq.plain import assert_close, make_example, plain_pair_logps, randomise_lora_b
from tests.longseq.stateful import (
    ITS_OWN_CACHE,
    KINDS,
    STATES_ALONE,
    float64_throughout,
    in_float64,
    state_model,
)
from tests.tiny import tiny_model

SHAPES = ((21, (7, 3, 1)), (9, (2, 4)), (1, (3,)))


def examples(shapes=SHAPES) -> list[TokenizedExample]:
    """Prompts of unlike length, each with some answers, at positions that jump within the prompt."""
    rng = np.random.default_rng(0)
    return [make_example(rng, prompt=prompt, answers=answers, jump=9) for prompt, answers in shapes]


def loss_of(logps: PairLogps) -> torch.Tensor:
    """LOGO's, whose gradient reaches every answer."""
    return logo_loss(logps, beta=2.5, gamma=0.25, sft_weight=0.1).loss.mean()


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every trainable parameter that the loss depends on; an expert that no token chose has none."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {name: value for name, value in found.items() if value.norm() > 0}


def shared(model: torch.nn.Module) -> torch.nn.Module:
    """A copy that attends over shared prefixes."""
    model = copy.deepcopy(model)
    model.set_attn_implementation(ATTENTION)
    return model


def assert_parity(plain, other, rows, *, tokens_per_row=None, tolerance=1e-9):
    """Log-probs and every gradient of `other` on a shared prefix against padded rows through `plain`."""
    expected = plain_pair_logps(plain, rows)
    actual = pair_logps(other, pack(rows, tokens_per_row=tokens_per_row), chunk_size=8)
    torch.testing.assert_close(actual.chosen, expected.chosen, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(actual.rejected, expected.rejected, rtol=tolerance, atol=tolerance)
    wanted = gradients(plain, loss_of(expected))
    assert len(wanted) > 7
    assert_close(gradients(other, loss_of(actual)), wanted, tolerance=tolerance)


@pytest.mark.parametrize("tokens_per_row", [None, 1], ids=["one row", "a row each"])
@pytest.mark.parametrize("kind", [*KINDS, *STATES_ALONE])
def test_every_architecture(kind, tokens_per_row):
    """Prompts with 3, 2 and 1 answers, some of one token, and a prompt of one token."""
    model = in_float64(state_model(kind)).train()
    with float64_throughout():
        assert_parity(model, shared(model), examples(), tokens_per_row=tokens_per_row)


@pytest.mark.parametrize("kind", ["qwen3_next", "nemotron_h", "jamba", "minimax", "lfm2", *ITS_OWN_CACHE])
def test_in_the_librarys_own_precision(kind):
    """As the library computes: its scans in float32, whose chunks lie elsewhere in padded rows."""
    model = in_float64(state_model(kind)).train()
    assert_parity(model, shared(model), examples(), tolerance=1e-4)


# Layers with a mixer, with attention, with both side by side (Falcon-H1), with two mixers (Qwen4), with neither.
LAYERS = ["qwen3_next", "nemotron_h", "falcon_h1", "jamba", "minimax", "bamba", "lfm2", "qwen4_exp_text"]


@pytest.mark.parametrize("chunk", [None, 7, 100], ids=["whole layers", "tiles", "one tile"])
@pytest.mark.parametrize("checkpointing", ["full", "keep_attention"])
@pytest.mark.parametrize("kind", LAYERS)
def test_memory_levers(kind, checkpointing, chunk):
    """Of every way in which mixers and attention stand in a layer."""
    model = in_float64(state_model(kind)).train()
    other = shared(model)
    apply_checkpointing(other, checkpointing, mlp_chunk=chunk, offload="none" if chunk is None else "disk")
    with float64_throughout():
        assert_parity(model, other, examples())


@pytest.mark.parametrize("checkpointing", ["full", "keep_attention"])
@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_layers_that_are_handed_no_layout(kind, checkpointing):
    """A checkpoint keeps it for their recomputation; tiles have nothing to cut in them."""
    model = in_float64(state_model(kind)).train()
    other = shared(model)
    apply_checkpointing(other, checkpointing, offload="disk")
    with float64_throughout():
        assert_parity(model, other, examples())
    apply_checkpointing(other, checkpointing, mlp_chunk=7)
    with pytest.raises(UserError, match=r"not handed the row's layout .* set memory\.mlp_chunk=null"):
        pair_logps(other, pack(examples()))


@pytest.mark.parametrize("kind", ["zamba", "zamba2"])
def test_a_layer_within_a_layer(kind):
    """Zamba's hybrid layers hold a layer, and take more than hidden states by position."""
    model = in_float64(state_model(kind)).train()
    other = shared(model)
    apply_checkpointing(other, "full")
    with float64_throughout():
        assert_parity(model, other, examples())
    apply_checkpointing(other, "full", mlp_chunk=7)
    with float64_throughout():
        assert_parity(model, other, examples())


LORA = {
    "qwen3_next": ["in_proj_qkvz", "in_proj_ba", "out_proj", "q_proj"],
    "nemotron_h": ["in_proj", "q_proj", "k_proj", "o_proj"],  # PEFT refuses out_proj
    "jamba": ["in_proj", "x_proj", "out_proj", "q_proj"],
    "lfm2": ["in_proj", "out_proj", "q_proj"],
    "mamba": ["in_proj", "x_proj"],
}


@pytest.mark.parametrize("kind", LORA)
def test_adapters_on_a_mixers_projections(kind):
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=LORA[kind], task_type="CAUSAL_LM")
    model = get_peft_model(in_float64(state_model(kind)), config).double().train()
    randomise_lora_b(model)
    other = copy.deepcopy(model)
    find_causal_lm(other).set_attn_implementation(ATTENTION)
    apply_checkpointing(other, "full", mlp_chunk=None if kind == "mamba" else 7)
    with float64_throughout():
        assert_parity(model, other, examples())


def test_a_mixer_that_is_trained_whole():
    """PEFT then has two of it, of which the reference, with the adapter off, calls the other."""
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["linear_attn"], task_type="CAUSAL_LM")
    model = get_peft_model(in_float64(state_model("qwen3_next")), config).double().train()
    randomise_lora_b(model)
    other = copy.deepcopy(model)
    find_causal_lm(other).set_attn_implementation(ATTENTION)
    with float64_throughout():
        assert_parity(model, other, examples())
        with model.disable_adapter(), other.disable_adapter():
            off, expected = pair_logps(other, pack(examples())), plain_pair_logps(model, examples())
    torch.testing.assert_close(off.chosen, expected.chosen, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["qwen3_next", "nemotron_h", "jamba", "minimax", "lfm2", "zamba2"])
def test_generation_and_weights_stay_what_they_are(kind):
    """The library's own paths, one token at a time with its cache too, and the names of all weights."""
    model = state_model(kind)
    prepared = copy.deepcopy(model)
    prepare_states(prepared)
    prepare_states(prepared)
    assert state_mixers(prepared)
    assert not state_mixers(model)
    ids = torch.arange(4, 15)[None]
    asked = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    before, after = (each.generate(ids, **asked) for each in (model, prepared))
    assert torch.equal(before.sequences, after.sequences)
    assert all(torch.equal(*pair) for pair in zip(before.logits, after.logits, strict=True))
    assert list(model.state_dict()) == list(prepared.state_dict())
    kinds = [[type(module).__name__ for module in each.modules()] for each in (model, prepared)]
    assert kinds[0] == kinds[1]  # wrappers and hooks find layers by these names


class Counting(torch.nn.Linear):
    """Counts the tokens that go through it."""

    tokens = 0

    def forward(self, hidden):
        Counting.tokens += hidden.shape[1]
        return super().forward(hidden)


@pytest.mark.parametrize(
    ("kind", "path", "tokens"),
    [
        # 20 of the prompt and 5, 4 and 2 × 1 of the answers: one token is read twice.
        ("qwen3_next", "linear_attn.in_proj_qkvz", 20 + 5 + 4 + 2),
        # Mamba-1 goes along the prompt again for each.
        ("jamba", "mamba.in_proj", 3 * 20 + 5 + 4 + 1),
    ],
)
def test_the_prompt_is_read_once(kind, path, tokens):
    model = shared(state_model(kind))
    layer = model.model.layers[0]
    layer.get_submodule(path).__class__ = Counting
    Counting.tokens = 0
    pair_logps(model, pack(examples([(20, (5, 4, 1))])))
    assert Counting.tokens == tokens


def test_a_prompt_without_answers():
    """As the row that a process reads while others have rows left."""
    model = in_float64(state_model("qwen3_next"))
    prepare_states(model)
    mixer = state_mixers(model)[0]
    hidden = torch.randn(1, 9, 32, dtype=torch.float64)
    prompts = (PackedPrompt((0, 4), ()), PackedPrompt((4, 5), ()), PackedPrompt((5, 7), ((7, 9),)))
    with float64_throughout():
        output = mixer(hidden, layout=prepare(Layout(prompts)))
        alone = [mixer(hidden[:, start:stop]) for start, stop in ((0, 4), (4, 5), (5, 9))]
    torch.testing.assert_close(output, torch.cat(alone, dim=1))


@pytest.mark.parametrize("kind", [*KINDS])
def test_supported(kind):
    check_supported(state_model(kind))


@pytest.mark.parametrize("kind", ["qwen3_5_text", "olmo_hybrid", "bamba", "falcon_h1", "lfm2", "zamba2"])
def test_found_to_be_computed_before_weights_are_read(kind):
    model = state_model(kind)
    assert check_computed(type(model), model.config)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (
            "jamba",
            "JambaMambaMixer cannot start from a state and runs along the prompt again for each answer",
        ),
        ("minimax", "MiniMaxLightningAttention reads an answer token by token from the prompt's state"),
    ],
)
def test_what_costs_more_is_said(kind, sentence, tmp_path, monkeypatch):
    """At every start, also where the verdict is read from its note."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    model = state_model(kind)
    for _ in range(2):
        with pytest.warns(AlignWarning, match=sentence):
            check_computed(type(model), model.config)


def test_sequence_parallelism_is_refused_before_weights_are_read():
    config = state_model("qwen3_next").config
    check_degree(config, 1)
    check_degree(tiny_model().config, 2)
    with pytest.raises(UserError, match=r"qwen3_next models .* set parallel\.degree=1 in place of 2"):
        check_degree(config, 2)


def test_a_shard_of_a_row_is_refused():
    model = shared(state_model("qwen3_next"))
    row = pack(examples([(20, (5, 4))])).rows[0]
    prepare_states(model)
    tokens = {"input_ids": row.input_ids[:, :8], "position_ids": row.position_ids[:, :8]}
    with pytest.raises(UserError, match=r"set parallel\.degree=1"):
        model(**tokens, layout=prepare(row.layout))


class OwnMixer(Qwen3NextGatedDeltaNet):
    """A mixer that runs along the row by code of its own, with no word to a cache."""

    def forward(self, hidden_states, **kwargs):
        return self.out_proj(self.in_proj_qkvz(hidden_states)[..., :32].cumsum(1))


def test_a_mixer_that_nobody_knows_is_refused():
    model = shared(state_model("qwen3_next"))
    model.model.layers[0].linear_attn.__class__ = OwnMixer
    with pytest.raises(UserError, match="code of its own in 1 of its 2 layers"):
        pair_logps(model, pack(examples([(20, (5, 4))])))


def test_a_mixer_that_is_not_reached_is_refused():
    """As where a library has put a forward of its own over the module's."""
    model = shared(state_model("falcon_h1"))
    mixer = model.model.layers[1].mamba
    mixer.forward = mixer.forward
    with pytest.raises(UserError, match="code of its own in 1 of its 2 layers"):
        pair_logps(model, pack(examples([(20, (5, 4))])))
