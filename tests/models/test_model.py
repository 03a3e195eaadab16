"""The policy as its settings describe it: RoPE of every type, what trains beside LoRA, four-bit weights, warnings."""

from __future__ import annotations

import importlib.machinery
import math
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config

from align.adapters.adapter import add_adapter
from align.adapters.half import Half
from align.adapters.lora import Lora
from align.core.errors import UserError
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.support import check_config
from align.models import loading as model_module
from align.models import quantization
from align.models.checks import check_model
from align.models.identity import parameters_digest
from align.models.loading import load_causal_lm, load_config, load_tokenizer, native_window
from align.models.settings import ModelSettings, RopeSettings
from align.reference.sources import AdapterOff
from losses import logo_loss
from tests.longseq.plain import (
    assert_close,
    gradients,
    make_example,
    plain_pair_logps,
    randomise_lora_b,
)
from tests.tiny import tiny_model, tiny_tokenizer

WINDOW = 4096  # tiny_model's max_position_embeddings
THETA = 10_000.0
EMBEDDING = "embed_tokens.modules_to_save.default.weight"


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """Saves a tiny model once for each kind and overrides; returns its folder."""
    folders: dict[str, Path] = {}

    def folder_of(kind: str = "llama", **overrides) -> Path:
        key = f"{kind} {sorted(overrides.items())}"
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("model")
            tiny_model(kind, **overrides).save_pretrained(folders[key])
        return folders[key]

    return folder_of


def settings(folder: Path, **keys) -> ModelSettings:
    return ModelSettings(path=str(folder), dtype="float32", **keys)


def rotary(folder: Path, **rope) -> torch.nn.Module:
    return load_causal_lm(settings(folder, rope=RopeSettings(**rope))).model.rotary_emb


# ---- RoPE


def base_frequencies(theta: float, dim: int = 16) -> np.ndarray:
    """θ^(−2i/d), i = 0 … d/2 − 1."""
    return theta ** (-np.arange(0, dim, 2) / dim)


def yarn_frequencies(theta, factor, window, dim=16, fast=32.0, slow=1.0) -> np.ndarray:
    """YaRN (arXiv 2309.00071, section 3.2): a ramp over dimensions from extrapolation to interpolation.

    A dimension i turns r = window / (2π θ^(2i/d)) times within the window; solved for i at r = fast and slow
    and rounded outwards, that is where the ramp begins and ends.
    """

    def dimension(turns: float) -> float:
        return dim * math.log(window / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
    plain = base_frequencies(theta, dim)
    return plain / factor * ramp + plain * (1 - ramp)


def llama3_frequencies(theta, factor, window, low, high, dim=16) -> np.ndarray:
    """Llama 3.1: wavelengths above window/low are stretched by factor, below window/high kept, between mixed."""
    result = []
    for frequency in base_frequencies(theta, dim):
        turns = window * frequency / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        result.append(frequency * kept + frequency / factor * (1 - kept))
    return np.array(result)


ROPE_CASES = {
    "theta": ({"theta": 2e8}, base_frequencies(2e8), 1.0),
    "default": ({"type": "default", "theta": 5e5}, base_frequencies(5e5), 1.0),
    "linear": ({"type": "linear", "factor": 4.0}, base_frequencies(THETA) / 4, 1.0),
    "yarn": (
        {"type": "yarn", "factor": 4.0},
        yarn_frequencies(THETA, 4.0, WINDOW),
        0.1 * math.log(4.0) + 1,
    ),
    "yarn with every key": (
        {
            "type": "yarn",
            "theta": 1e6,
            "factor": 8.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.3,
        },
        yarn_frequencies(1e6, 8.0, 512, fast=16.0, slow=2.0),
        1.3,
    ),
    "llama3": (
        {
            "type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        llama3_frequencies(THETA, 8.0, 512, 1.0, 4.0),
        1.0,
    ),
    # stretch = 4 · 12288/4096 − 3 = 9; θ' = θ · 9^(16/14)
    "dynamic": (
        {"type": "dynamic", "factor": 4.0, "length": 12288},
        base_frequencies(THETA * 9 ** (16 / 14)),
        1.0,
    ),
}


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("case", ROPE_CASES)
def test_inverse_frequencies(save, case, kind):
    rope, expected, scale = ROPE_CASES[case]
    embedding = rotary(save(kind), **rope)
    np.testing.assert_allclose(embedding.inv_freq.numpy(), expected, rtol=1e-5)
    assert embedding.attention_scaling == pytest.approx(scale)


@pytest.mark.parametrize("case", ["theta", "linear", "yarn", "dynamic"])
def test_partial_rotary_embedding_keeps_its_share(save, case):
    """GLM rotates half of a head: 8 of 16 dimensions, before and after a change of type."""
    rope = ROPE_CASES[case][0]
    expected = {
        "theta": base_frequencies(2e8, 8),
        "linear": base_frequencies(THETA, 8) / 4,
        "yarn": yarn_frequencies(THETA, 4.0, WINDOW, dim=8),
        "dynamic": base_frequencies(THETA * 9 ** (8 / 6), 8),
    }[case]
    np.testing.assert_allclose(rotary(save("glm"), **rope).inv_freq.numpy(), expected, rtol=1e-5)


def test_no_override_changes_nothing(save):
    folder = save()
    assert load_config(settings(folder)).to_dict() == AutoConfig.from_pretrained(folder).to_dict()


LLAMA_3_1 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


def test_the_checkpoints_type_keeps_its_other_keys(save):
    folder = save(rope_parameters=LLAMA_3_1)
    expected = llama3_frequencies(5e5, 16.0, 512, 1.0, 4.0)
    np.testing.assert_allclose(rotary(folder, factor=16.0).inv_freq.numpy(), expected, rtol=1e-5)


def test_another_type_starts_afresh_from_the_pretraining_window(save):
    """YaRN on a Llama-3.1: its own window is 512, not the 4096 that llama3 scaling stretched it to."""
    config = load_config(
        settings(save(rope_parameters=LLAMA_3_1), rope=RopeSettings(type="yarn", factor=32.0))
    )
    assert config.rope_parameters == {
        "rope_type": "yarn",
        "rope_theta": 5e5,
        "factor": 32.0,
        "original_max_position_embeddings": 512,
    }


def test_overrides_survive_saving(save, tmp_path):
    rope = RopeSettings(type="yarn", factor=4.0, max_position_embeddings=4 * WINDOW)
    model = load_causal_lm(settings(save(), rope=rope))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert again.config.max_position_embeddings == 4 * WINDOW
    assert again.config.rope_parameters["original_max_position_embeddings"] == WINDOW


def test_dynamic_is_held_at_what_the_library_reaches_at_that_length(save):
    """The library's dynamic RoPE after a sequence of 12288 tokens has our frequencies."""
    held = rotary(save(), type="dynamic", factor=4.0, length=12288).inv_freq
    dynamic = tiny_model(rope_parameters={"rope_type": "dynamic", "rope_theta": THETA, "factor": 4.0})
    dynamic.model.rotary_emb(torch.zeros(1), torch.tensor([[12287]]))
    torch.testing.assert_close(held, dynamic.model.rotary_emb.inv_freq)


def test_why_dynamic_rope_is_not_left_dynamic():
    """In the library the same tokens at the same positions get another embedding once a longer row was read."""
    embedding = tiny_model(
        rope_parameters={"rope_type": "dynamic", "rope_theta": THETA, "factor": 4.0}
    ).model.rotary_emb
    row, longer = torch.tensor([[5000]]), torch.tensor([[12287]])
    before = embedding(torch.zeros(1), row)[0].clone()
    embedding(torch.zeros(1), longer)
    assert not torch.equal(before, embedding(torch.zeros(1), row)[0])


def test_a_checkpoint_with_dynamic_rope_needs_a_length(save):
    folder = save(rope_parameters={"rope_type": "dynamic", "rope_theta": THETA, "factor": 4.0})
    with pytest.raises(UserError, match=r"set model\.rope\.length=TOKENS"):
        check_config(load_config(settings(folder)))
    config = load_config(settings(folder, rope=RopeSettings(length=12288)))
    check_config(config)
    assert config.rope_parameters["rope_theta"] == pytest.approx(THETA * 9 ** (16 / 14))


WRONG_ROPES = [
    ({"type": "ntk"}, r"model\.rope\.type=ntk is not known: use default, linear"),
    ({"type": "linear"}, r"model\.rope\.type=linear needs model\.rope\.factor"),
    ({"type": "yarn"}, r"type=yarn needs model\.rope\.factor"),
    ({"type": "llama3", "factor": 8.0}, r"type=llama3 needs model\.rope\.low_freq_factor"),
    ({"type": "dynamic", "factor": 4.0}, r"type=dynamic needs model\.rope\.length"),
    (
        {"factor": 4.0},
        r"factor does not go with RoPE of type default: set model\.rope\.type to linear or dynamic",
    ),
    ({"type": "linear", "factor": 2.0, "beta_fast": 8.0}, r"beta_fast does not go with RoPE of type linear"),
    ({"type": "default", "length": 9000}, r"length does not go with RoPE of type default"),
    ({"type": "linear", "factor": 0.5}, r"factor=0\.5 has to be 1 or more"),
    ({"theta": -1.0}, r"theta=-1\.0 has to be above 0"),
    ({"max_position_embeddings": 0}, r"max_position_embeddings=0 has to be above 0"),
    (
        {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0},
        r"low_freq_factor=4\.0 has to be below model\.rope\.high_freq_factor=1\.0",
    ),
    (
        {"type": "yarn", "factor": 4.0, "beta_slow": 40.0},
        r"beta_slow=40\.0 has to be below model\.rope\.beta_fast=32",
    ),
    ({"type": "dynamic", "factor": 4.0, "length": WINDOW}, r"length=4096 is within the checkpoint's window"),
]


@pytest.mark.parametrize(("rope", "sentence"), WRONG_ROPES, ids=[sentence for _, sentence in WRONG_ROPES])
def test_wrong_combinations_are_refused(save, rope, sentence):
    with pytest.raises(UserError, match=sentence):
        load_config(settings(save(), rope=RopeSettings(**rope)))


def test_a_model_without_rope_is_refused():
    config = AutoConfig.for_model("gpt2")
    with pytest.raises(UserError, match="gpt2 models have no rotary embedding"):
        model_module.override_rope(config, RopeSettings(theta=1e6))


def test_a_rope_for_each_type_of_layer_is_refused():
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=2)
    with pytest.raises(UserError, match="rotary embedding for each type of layer"):
        model_module.override_rope(config, RopeSettings(theta=1e6))


# ---- beside LoRA


def with_lora(model: torch.nn.Module, *, attention: str, **keys) -> torch.nn.Module:
    model.set_attn_implementation(attention)
    torch.manual_seed(1)
    return add_adapter(model, Lora(r=4, **keys)).train()


def loss_of(logps) -> torch.Tensor:
    return logo_loss(logps, beta=2.5, gamma=0.25, sft_weight=0.1).loss.mean()


EXAMPLES = [
    make_example(np.random.default_rng(0), prompt=15, answers=[5, 3, 6]),
    make_example(np.random.default_rng(1), prompt=8, answers=[2, 7, 1]),
]


@pytest.mark.parametrize("saved", [["embed_tokens"], ["norm"], ["embed_tokens", "norm"], ["lm_head"]])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_modules_beside_lora_equal_the_plain_way(kind, tied, saved):
    build = partial(tiny_model, kind, tie_word_embeddings=tied)
    plain, shared = (
        with_lora(build(), attention=name, modules_to_save=saved) for name in ("sdpa", ATTENTION)
    )
    for model in (plain, shared):
        randomise_lora_b(model)
    expected, actual = plain_pair_logps(plain, EXAMPLES), pair_logps(shared, pack(EXAMPLES), chunk_size=8)
    torch.testing.assert_close(loss_of(actual), loss_of(expected), rtol=1e-5, atol=0)
    assert_close(gradients(shared, loss_of(actual)), gradients(plain, loss_of(expected)))


def test_norm_stands_for_every_normalisation_layer():
    """LongLoRA (arXiv 2309.12307, section 3.3) trains embeddings and all norms: here 2 · (2 + q + k) + 1 = 9."""
    model = with_lora(tiny_model("qwen3"), attention=ATTENTION, modules_to_save=["embed_tokens", "norm"])
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sum("norm" in name for name in names) == 9
    assert sum(name.endswith(EMBEDDING) for name in names) == 1
    assert all("lora_" in name or "modules_to_save" in name for name in names)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_embeddings_gradient_is_that_of_full_training(tied):
    """With B = 0 the adapter adds nothing: the gradient is the bare model's, where tied that of both uses."""
    model = with_lora(
        tiny_model(tie_word_embeddings=tied), attention=ATTENTION, modules_to_save=["embed_tokens"]
    )
    bare = tiny_model(tie_word_embeddings=tied, attn_implementation=ATTENTION)
    bare.set_attn_implementation(ATTENTION)
    loss, expected = (loss_of(pair_logps(one, pack(EXAMPLES))) for one in (model, bare))
    ours = {"embedding": gradients(model, loss)[f"base_model.model.model.{EMBEDDING}"]}
    assert_close(ours, {"embedding": gradients(bare, expected)["model.embed_tokens.weight"]})


def test_a_tied_head_trains_with_its_embedding():
    model = with_lora(
        tiny_model(tie_word_embeddings=True), attention=ATTENTION, modules_to_save=["embed_tokens"]
    )
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.get_input_embeddings().weight.requires_grad


def test_the_adapter_off_reference_has_the_starting_embedding():
    """However far embedding, norms and adapter have moved."""
    model = with_lora(tiny_model(), attention=ATTENTION, modules_to_save=["embed_tokens", "norm"])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3)
    bare = tiny_model()
    bare.set_attn_implementation(ATTENTION)
    reference = AdapterOff(model, pair_logps)(model, pack(EXAMPLES))
    with torch.no_grad():
        expected = pair_logps(bare, pack(EXAMPLES))
    torch.testing.assert_close(reference.chosen, expected.chosen)
    torch.testing.assert_close(reference.rejected, expected.rejected)


WRONG_LORAS = [
    ({"modules_to_save": ["embeddings"]}, r"modules_to_save names embeddings, which LlamaForCausalLM"),
    ({"target_modules": ["query"]}, r"target_modules names query, which LlamaForCausalLM"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, r"ties its output head to its embedding"),
    ({"target_modules": ["q_proj", "lm_head"]}, r"ties its output head to its embedding"),
    ({"modules_to_save": ["q_proj"]}, r"names q_proj in both"),
]


@pytest.mark.parametrize(("keys", "sentence"), WRONG_LORAS, ids=[sentence for _, sentence in WRONG_LORAS])
def test_wrong_modules_are_refused(keys, sentence):
    with pytest.raises(UserError, match=sentence):
        with_lora(tiny_model(tie_word_embeddings=True), attention=ATTENTION, **keys)


# ---- four-bit weights


def test_four_bit_configuration():
    config = quantization.quantization_config("nf4", torch.bfloat16)
    assert config is not None
    assert config.load_in_4bit and not config.load_in_8bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype is torch.bfloat16
    assert quantization.quantization_config("none", torch.bfloat16) is None


QLORA = ModelSettings(quantization="nf4", adapter=Lora(r=8))


@pytest.fixture
def machine(monkeypatch):
    """Pretends that bitsandbytes and a GPU are there, or not."""

    def pretend(*, package: bool, gpu: bool) -> None:
        spec = importlib.machinery.ModuleSpec("bitsandbytes", None) if package else None
        monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)

    return pretend


@pytest.mark.parametrize(
    ("keys", "package", "gpu", "sentence"),
    [
        ({"quantization": "int3"}, True, True, r"quantization=int3 is not known: use none, nf4"),
        ({"adapter": None}, True, True, r"leaves nothing to train.*set adapter=lora"),
        ({"adapter": Half()}, True, True, r"does not go with adapter=half"),
        ({}, False, True, r"needs the package bitsandbytes.*long-preference\[qlora\]"),
        ({}, True, False, r"needs a CUDA GPU, and none is visible"),
    ],
    ids=["unknown", "no adapter", "copies of weights", "no package", "no GPU"],
)
def test_quantisation_is_refused_in_one_sentence(machine, keys, package, gpu, sentence):
    machine(package=package, gpu=gpu)
    with pytest.raises(UserError, match=sentence):
        check_model(replace(QLORA, dtype="float32", **keys))


def test_loading_is_refused_too(machine, save):
    """A frozen reference has no adapter and is loaded without `check_model`."""
    machine(package=False, gpu=False)
    with pytest.raises(UserError, match="needs the package bitsandbytes"):
        load_causal_lm(settings(save(), quantization="nf4"))


def test_what_the_library_is_asked_for(machine, monkeypatch, save):
    """Four-bit weights go straight to the process's GPU: they cannot be moved or built on the CPU first."""
    machine(package=True, gpu=True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    asked = {}

    def load(path: str, **keywords):
        asked.update(keywords)
        return tiny_model()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    load_causal_lm(settings(save(), quantization="nf4"))
    assert asked["quantization_config"].bnb_4bit_compute_dtype is torch.float32
    assert asked["device_map"] == {"": 3}
    load_causal_lm(settings(save()))
    assert asked["quantization_config"] is None
    assert asked["device_map"] is None


# ---- remote code


def test_trust_remote_code_is_off_and_warns_when_set(save):
    folder = save()
    tiny_tokenizer().save_pretrained(folder)
    assert not ModelSettings().trust_remote_code
    for load in (
        lambda trust: load_config(settings(folder, trust_remote_code=trust)),
        lambda trust: load_tokenizer(str(folder), trust_remote_code=trust),
    ):
        with pytest.warns(UserWarning, match=r"trust_remote_code=true runs Python code that comes with"):
            load(True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load(False)


def test_weights_in_memory_are_known_by_their_bits():
    """The same weights in another copy, and other ones after the smallest change; in 16 bits too."""
    first, same, other = tiny_model(), tiny_model(), tiny_model()
    with torch.no_grad():
        weight = next(other.parameters())
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(10.0))
    assert parameters_digest(first) == parameters_digest(same) != parameters_digest(other)
    assert parameters_digest(first.bfloat16()) == parameters_digest(same.bfloat16())


def test_the_window_of_a_composite_is_its_text_parts(tmp_path):
    config = Gemma3Config(text_config={"max_position_embeddings": 300}, vision_config={"hidden_size": 16})
    config.save_pretrained(tmp_path)
    assert not hasattr(config, "max_position_embeddings")
    assert native_window(ModelSettings(path=str(tmp_path))) == 300
