"""A composite's text part: found in every family, alone attending and training, and saved with all the rest."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from align.adapters.adapter import add_adapter
from align.adapters.lora import Lora
from align.core.errors import UserError
from align.longseq import ATTENTION
from align.longseq.support import check_config
from align.models.identity import Identity
from align.models.loading import library_class, load_causal_lm, load_config, load_tokenizer, window_of
from align.models.precision import Precision
from align.models.processor_files import copy_processor
from align.models.settings import ModelSettings, RopeSettings
from align.models.structure import attention_of, decoder_layers, find_causal_lm
from align.models.text_part import (
    current_attention,
    frozen_words,
    is_composite,
    other_parts,
    set_attention,
    text_config,
    text_decoder,
)
from tests.longseq.plain import randomise_lora_b
from tests.tiny import (
    COMPOSITES,
    PROCESSOR_FILES,
    save_tiny,
    save_tiny_composite,
    tiny_composite,
    tiny_model,
    tiny_tokenizer,
)

IDS = torch.arange(8, 40)[None]


def trainable(model) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("kind", COMPOSITES)
def test_the_text_part_of_every_family(kind):
    """Two layers of 64 numbers, and neither the tower nor the projector among them."""
    model = tiny_composite(kind)
    text = text_config(model.config)
    assert text.model_type == COMPOSITES[kind][0]
    assert is_composite(model.config)
    assert text_decoder(model).config.model_type == text.model_type
    assert len(decoder_layers(model)) == text.num_hidden_layers == 2
    others = other_parts(model)
    assert others and not any("language_model" in name or "lm_head" in name for name in others)
    counted = sum(weight.numel() for part in others.values() for weight in part.parameters())
    decoder = sum(weight.numel() for weight in text_decoder(model).parameters())
    head = model.get_output_embeddings().weight.numel()
    assert counted + decoder + head == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("kind", COMPOSITES)
def test_only_the_text_part_changes_its_attention(kind):
    model = tiny_composite(kind)
    towers = [part for part in other_parts(model).values() if hasattr(part, "config")]
    assert towers
    before = [tower.config._attn_implementation for tower in towers]
    with attention_of(model, ATTENTION):
        assert current_attention(model) == text_decoder(model).config._attn_implementation == ATTENTION
        assert [tower.config._attn_implementation for tower in towers] == before
    assert current_attention(model) == "sdpa"
    set_attention(model, ATTENTION)
    assert [tower.config._attn_implementation for tower in towers] == before


def test_a_text_model_is_its_own_text_part():
    model = tiny_model()
    assert text_config(model.config) is model.config
    assert not other_parts(model)
    assert frozen_words(model) is None
    assert trainable(add_adapter(model, None)) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", ["musicgen", "qwen3_omni_moe", "pix2struct"])
def test_a_composite_without_one_text_decoder_is_refused_before_weights(kind):
    with pytest.raises(UserError, match=f"{kind} models are composites in which no text decoder") as caught:
        check_config(CONFIG_MAPPING[kind]())
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize(
    ("kind", "whole"),
    [
        (
            "llama4",
            "Llama4ForConditionalGeneration",
        ),  # the causal class of the same configuration is text alone
        ("qwen3_5", "Qwen3_5ForConditionalGeneration"),
        ("gemma3", "Gemma3ForConditionalGeneration"),
        ("mistral3", "Mistral3ForConditionalGeneration"),
        ("voxtral", "VoxtralForConditionalGeneration"),
        ("qwen3_5_text", "Qwen3_5ForCausalLM"),
        ("llama", "LlamaForCausalLM"),
    ],
)
def test_the_class_that_holds_the_whole_checkpoint(kind, whole):
    found = library_class(CONFIG_MAPPING[kind]())
    assert found is not None and found.__name__ == whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Mistral-3 with a tied head, and a processor's files."""
    path = tmp_path_factory.mktemp("composite") / "mistral3"
    save_tiny_composite(path, "mistral3", tie_word_embeddings=True)
    return path


def test_loading_keeps_every_weight_and_the_towers_attention(folder):
    model = load_causal_lm(ModelSettings(path=str(folder), dtype="float32"), attention=ATTENTION)
    assert type(model).__name__ == "Mistral3ForConditionalGeneration"
    expected = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert current_attention(model) == ATTENTION
    assert model.model.vision_tower.config._attn_implementation == "sdpa"


def test_rope_and_window_are_the_text_parts(folder):
    rope = RopeSettings(type="yarn", factor=4.0, max_position_embeddings=16384)
    config = load_config(ModelSettings(path=str(folder), rope=rope))
    assert config.text_config.rope_parameters["rope_type"] == "yarn"
    assert config.text_config.rope_parameters["original_max_position_embeddings"] == 4096
    assert window_of(config) == 16384
    assert not hasattr(config, "max_position_embeddings")


def test_the_identity_knows_the_text_parts_configuration(folder, tmp_path):
    def digest(**rope):
        settings = ModelSettings(path=str(folder), dtype="float32", rope=RopeSettings(**rope))
        return Identity.of(settings, precision=Precision(), cache=tmp_path).digest

    assert digest() == digest() != digest(theta=2e4)


def test_all_parameters_are_the_text_parts():
    """What trains is named by the text part's weights, and the line says what does not."""
    model = add_adapter(tiny_composite("gemma3"), None)
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in trainable(model))
    assert frozen_words(model) == (
        "Gemma3ForConditionalGeneration is a composite: its text part trains; model.vision_tower, "
        "model.multi_modal_projector are frozen, not run, and saved as they came."
    )


@pytest.mark.parametrize("kind", COMPOSITES)
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"target_modules": ["all-linear"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"modules_to_save": ["embed_tokens", "norm"]},
    ],
    ids=lambda keys: "-".join(["lora", *map(str, next(iter(keys.values()), []))]),
)
def test_adapters_are_in_the_text_part_alone(kind, keys, tmp_path):
    """Also where the tower has modules of the same names; they save, load, and switch off to the starting model."""
    base = tiny_composite(kind)
    with torch.no_grad():
        start = base(input_ids=IDS).logits
    settings = {"target_modules": ["q_proj", "o_proj"]} | keys
    model = add_adapter(base, Lora(r=2, **settings)).eval()
    inside = ("base_model.model.model.language_model.", "base_model.model.lm_head.")
    assert trainable(model) and all(name.startswith(inside) for name in trainable(model))
    lora = {name for name in trainable(model) if "lora_" in name}
    assert lora and find_causal_lm(model) is base
    if "all-linear" in settings["target_modules"]:
        assert not any("lm_head" in name for name in lora)
        plain = tiny_composite(kind)
        linear = [m for m in text_decoder(plain).modules() if isinstance(m, torch.nn.Linear)]
        assert len(lora) == 2 * len(linear)
    randomise_lora_b(model)
    with torch.no_grad():
        trained = model(input_ids=IDS).logits
        assert not torch.allclose(trained, start)
        with model.disable_adapter():
            assert torch.equal(model(input_ids=IDS).logits, start)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny_composite(kind), tmp_path).eval()
        assert torch.equal(again(input_ids=IDS).logits, trained)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=IDS).logits, trained, rtol=1e-4, atol=1e-4)
    for name, part in other_parts(merged).items():
        expected = tiny_composite(kind).get_submodule(name).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in part.state_dict().items())


def test_a_module_of_the_tower_alone_is_no_target():
    with pytest.raises(UserError, match="which Gemma3ForConditionalGeneration does not have"):
        add_adapter(tiny_composite("gemma3"), Lora(r=2, target_modules=["out_proj"]))


def test_the_tied_embedding_of_a_composite_trains_as_one(folder):
    base = load_causal_lm(ModelSettings(path=str(folder), dtype="float32"))
    assert base.lm_head.weight is base.model.language_model.embed_tokens.weight
    model = add_adapter(base, Lora(r=2, modules_to_save=["embed_tokens"]))
    embedding = {name for name in trainable(model) if "lora_" not in name}
    assert len(embedding) == 1
    model(input_ids=IDS).logits.sum().backward()
    assert model.get_parameter(embedding.pop()).grad.norm() > 0


def test_a_processors_files_are_copied_and_nothing_is_overwritten(folder, tmp_path):
    (tmp_path / PROCESSOR_FILES[0]).write_text("mine")
    copy_processor(str(folder), tmp_path)
    assert (tmp_path / PROCESSOR_FILES[0]).read_text() == "mine"
    assert (tmp_path / PROCESSOR_FILES[1]).read_bytes() == (folder / PROCESSOR_FILES[1]).read_bytes()
    assert not (tmp_path / "chat_template.jinja").exists()


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_a_chat_template_that_only_the_processor_has_is_the_tokenizers(name, tmp_path):
    save_tiny(tmp_path)
    tokenizer = tiny_tokenizer()
    template, tokenizer.chat_template = tokenizer.chat_template, None
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).chat_template is None
    (tmp_path / name).write_text(json.dumps({"chat_template": template}))
    assert load_tokenizer(str(tmp_path)).chat_template == template
    (tmp_path / name).write_text("{")
    with pytest.raises(UserError, match=f"{name} cannot be read as JSON"):
        load_tokenizer(str(tmp_path))
