"""The check at start: a small copy of the architecture, with the user's adapter, against padded rows."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, LlamaForCausalLM

from align.adapters.lora import Lora
from align.core.errors import UserError
from align.longseq import probe
from align.longseq.numeric import PROMPTS, measure
from align.longseq.probe import (
    check_adapter,
    check_architecture,
    check_computed,
    check_model_in_memory,
    prove,
)
from align.longseq.settings import MemorySettings
from align.longseq.small_model import build_small
from align.longseq.verdicts import Verdict, key_of
from align.models.settings import ModelSettings
from align.models.small import WINDOW
from align.training.preparation import prepare_model
from tests.tiny import save_tiny, tiny_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "architectures"


class Averaging(torch.nn.Module):
    """A layer's MLP that adds the mean over all tokens before each in the row: so tokens see each other."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, states):
        count = torch.arange(1, states.shape[1] + 1, dtype=states.dtype)[:, None]
        return self.inner(states) + states.cumsum(1) / count


class Averages(LlamaForCausalLM):
    """A model whose last layer mixes tokens by itself; every layer asks for our attention and its head is a head."""

    def __init__(self, config):
        super().__init__(config)
        self.model.layers[-1].mlp = Averaging(self.model.layers[-1].mlp)


class Sharper(torch.autograd.Function):
    """Leaves values as they are, and doubles a gradient that comes from one row alone."""

    @staticmethod
    def forward(ctx, states):
        ctx.factor = 2.0 if states.shape[0] == 1 else 1.0
        return states.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor


class OtherGradient(LlamaForCausalLM):
    """A model whose values are right and whose gradients are not."""

    def __init__(self, config):
        super().__init__(config)
        self.model.layers[0].mlp.register_forward_hook(lambda module, args, output: Sharper.apply(output))


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Averages, r"the output of layer 1 \(LlamaDecoderLayer\) differs"),
        (OtherGradient, r"the gradient of model\.layers\.0\.\S+ differs \(the loss by (0e\+00|\de-1\d)"),
    ],
)
def test_what_differs_is_named(kind, what):
    with pytest.raises(
        UserError, match=rf"{kind.__name__} computes something else on a shared prefix .*: {what}"
    ):
        check_computed(kind, tiny_model().config)


@pytest.mark.parametrize(
    "kind", ["mistral", "gemma3_text", "gpt_oss", "deepseek_v3", "cohere", "llama4_text"]
)
def test_windows_sinks_latent_attention_and_factors_are_proven(kind):
    """From the class's own configuration of billions of parameters, in a moment: to rounding, in float64."""
    config = CONFIG_MAPPING[kind]()
    verdict = prove(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
    assert (verdict.kind, verdict.dtype, verdict.sentence) == ("exact", "float64", "")
    assert verdict.loss < 1e-12
    assert verdict.gradient < 1e-12


def test_a_window_of_the_small_copy_is_shorter_than_its_rows():
    """Else nothing of a window would be tested."""
    config = CONFIG_MAPPING["mistral"](sliding_window=4096)
    model = build_small(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
    assert model.config.sliding_window == WINDOW < min(PROMPTS)
    proven = measure(model)
    model.config.sliding_window = 10_000
    other = measure(model)
    assert proven.exact and other.exact and proven.gradient != other.gradient


def test_soft_caps_share_a_prompt_whatever_the_kernel(tmp_path, cache):
    """Gemma-2 caps its scores and its logits; on a CPU products of torch stand for FlashAttention's kernels."""
    CONFIG_MAPPING["gemma2"]().save_pretrained(tmp_path / "model")
    for attention in ("sdpa", "flash2"):
        check_architecture(ModelSettings(path=str(tmp_path / "model"), attention=attention))


# ---- the note


def test_a_second_start_reads_the_verdict(cache, monkeypatch):
    config = CONFIG_MAPPING["qwen3"]()
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    assert check_computed(kind, config)
    (note,) = cache.iterdir()
    assert json.loads(note.read_text())["kind"] == "exact"
    monkeypatch.setattr(probe, "prove", lambda *given, **named: pytest.fail("built again"))
    assert check_computed(kind, config)


def test_a_refusal_is_remembered_too(cache, monkeypatch):
    config = CONFIG_MAPPING["doge"]()
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with pytest.raises(UserError) as first:
        check_computed(kind, config)
    monkeypatch.setattr(probe, "prove", lambda *given, **named: pytest.fail("built again"))
    with pytest.raises(UserError) as second:
        check_computed(kind, config)
    assert str(first.value) == str(second.value)


@pytest.mark.parametrize("content", ["", "{", '{"kind": "exact", "colour": 1}', "[1]"])
def test_a_damaged_note_is_found_out_anew(cache, content):
    config = CONFIG_MAPPING["llama"]()
    assert check_computed(LlamaForCausalLM, config)
    (note,) = cache.iterdir()
    note.write_text(content)
    assert check_computed(LlamaForCausalLM, config)
    assert json.loads(note.read_text())["kind"] == "exact"


def test_a_verdict_belongs_to_a_configuration_an_adapter_and_a_class():
    config, other = CONFIG_MAPPING["llama"](), CONFIG_MAPPING["llama"](attention_bias=True)
    keys = {
        key_of(LlamaForCausalLM, config, None),
        key_of(LlamaForCausalLM, other, None),
        key_of(LlamaForCausalLM, config, {"r": 8}),
    }
    assert len(keys) == 3
    assert key_of(LlamaForCausalLM, CONFIG_MAPPING["llama"](dtype="bfloat16"), None) in keys
    assert key_of(Averages, config, None) is None  # its code may change without a trace


# ---- adapters

TARGETS = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def test_an_adapters_settings_are_the_same_text_in_every_process():
    """PEFT keeps names of modules in sets, whose order differs from process to process."""
    names = [f"module_{i}" for i in range(20)]
    made = [peft.LoraConfig(target_modules=given) for given in (names, names[::-1])]
    assert probe.settings_of(made[0]) == probe.settings_of(made[1])
    assert probe.settings_of(made[0])["target_modules"] == str(sorted(names))


@pytest.mark.parametrize(
    "adapter",
    [
        peft.LoraConfig(**TARGETS, lora_dropout=0.5, layers_to_transform=[7]),
        peft.LoraConfig(**TARGETS, use_dora=True, modules_to_save=["lm_head"]),
        peft.IA3Config(**TARGETS, feedforward_modules=[]),
        peft.OFTConfig(**TARGETS),
        peft.LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
    ],
    ids=lambda adapter: str(adapter.peft_type.value),
)
def test_adapters_that_change_weights_are_proven(adapter, cache):
    assert check_adapter(LlamaForCausalLM, tiny_model().config, adapter)


@pytest.mark.parametrize(
    ("adapter", "sentence"),
    [
        (
            peft.LilyConfig(**TARGETS),
            r"adapters of type LILY computes something else .* use LoRA, or another adapter",
        ),
        (peft.AdaLoraConfig(**TARGETS, total_step=10), "adapters of type ADALORA cannot be run"),
        (
            peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
            "PROMPT_TUNING put virtual tokens",
        ),
        (
            peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
            "PREFIX_TUNING put virtual tokens",
        ),
    ],
    ids=lambda value: "",
)
def test_adapters_that_attend_are_refused_also_in_a_notebook(adapter, sentence, cache):
    """All of these trained, or crashed within a hook, before: off by up to a factor of 3 in a gradient."""
    with pytest.raises(UserError, match=sentence):
        check_adapter(LlamaForCausalLM, tiny_model().config, adapter)
    with pytest.raises(UserError, match=sentence):
        prepare_model(peft.get_peft_model(tiny_model(), adapter), MemorySettings())


def test_an_adapter_that_does_not_fit_small_widths_is_not_proven_and_that_is_said(cache, capsys):
    adapter = peft.RoadConfig(**TARGETS, group_size=48)
    assert not check_adapter(LlamaForCausalLM, tiny_model().config, adapter)
    assert "No small LlamaForCausalLM with adapters of type ROAD runs on a CPU" in capsys.readouterr().err


def test_the_users_lora_is_part_of_the_check(tmp_path, cache):
    save_tiny(tmp_path / "model")
    check_architecture(ModelSettings(path=str(tmp_path / "model"), adapter=Lora(r=4)))
    assert len(list(cache.iterdir())) == 1
    wrong = Lora(r=4, target_modules=["q_proj", "w_proj"])
    with pytest.raises(UserError, match="target_modules names w_proj"):
        check_architecture(ModelSettings(path=str(tmp_path / "model"), adapter=wrong))


def test_a_model_in_memory_is_held_by_its_class(cache):
    check_model_in_memory(tiny_model())
    check_model_in_memory(peft.get_peft_model(tiny_model(), peft.LoraConfig(**TARGETS)))
    assert len(list(cache.iterdir())) == 2
    with pytest.raises(UserError, match="Averages computes something else"):
        check_model_in_memory(Averages(tiny_model().config))


def test_a_verdict_raises_its_sentence_where_the_model_must_not_train():
    for kind in ("exact", "unproven"):
        Verdict(kind, "said").check()
    for kind in ("differs", "refused"):
        with pytest.raises(UserError, match="said"):
            Verdict(kind, "said").check()
