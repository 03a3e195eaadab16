"""Models that the shared-prefix forward does not compute exactly are refused by name."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaAttention

from align.core.errors import UserError
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.probe import check_architecture, check_computed
from align.longseq.support import check_config, check_supported
from align.longseq.tail import tail_of
from align.models.settings import ModelSettings
from tests.longseq.plain import assert_close, gradients, make_example, plain_pair_logps
from tests.tiny import KINDS, tiny_model


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("musicgen", {}, "no text decoder can be told"),
        (
            "big_bird",
            {"is_decoder": True},
            "attention_type=block_sparse, which reads long rows in both directions",
        ),
    ],
)
def test_refused_by_name(kind, values, reason):
    with pytest.raises(UserError, match=reason) as caught:
        check_config(CONFIG_MAPPING[kind](**values))
    assert kind in str(caught.value)


def test_longrope_is_refused_where_a_rows_length_picks_its_list():
    """Equal lists leave nothing to pick; see tests/models/test_rope_table.py."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = tiny_model("phi3").config
    config.rope_parameters = rope
    with pytest.raises(
        UserError, match="LongRoPE, which picks its frequencies by the row's longest position"
    ):
        check_config(config)
    config.rope_parameters = rope | {"long_factor": [1.0] * 8}
    check_config(config)


def test_model_without_the_attention_interface_is_refused(monkeypatch):
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16))
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    with pytest.raises(UserError, match="GPT2LMHeadModel does not take its attention"):
        check_supported(model)


def test_attention_dropout_is_no_secret():
    """Dropout is passed on, so training mode differs from evaluation mode when it is on."""
    rng = np.random.default_rng(1)
    model = tiny_model("llama", attention_dropout=0.5)
    model.set_attn_implementation(ATTENTION)
    batch = pack([make_example(rng, prompt=12, answers=[5, 3])])
    assert pair_logps(model.train(), batch).chosen.item() != pair_logps(model.eval(), batch).chosen.item()


class OwnAttention(LlamaAttention):
    """Llama's attention computed by code of its own, as models from repositories do."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        heads = [
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        ]
        mixed = scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), None


class DropsKeywords(LlamaAttention):
    """Llama's attention that keeps the forward's keywords to itself."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        return super().forward(hidden_states, position_embeddings, attention_mask)


@pytest.mark.parametrize(
    ("attention", "layers", "sentence"),
    [
        (OwnAttention, [0], "LlamaForCausalLM computes attention by code of its own in 1 of its 2 layers"),
        (OwnAttention, [0, 1], "in 2 of its 2 layers"),
        (DropsKeywords, [1], "DropsKeywords was not handed the row's layout"),
    ],
)
def test_attention_that_a_layer_overrides_is_found_in_the_first_forward(attention, layers, sentence):
    """It would see siblings, and nothing that the model says of itself tells: `check_supported` passes."""
    model = tiny_model()
    for layer in layers:
        model.model.layers[layer].self_attn = attention(model.config, layer)
    model.set_attn_implementation(ATTENTION)
    check_supported(model)
    with pytest.raises(UserError, match=sentence):
        pair_logps(model, pack([make_example(np.random.default_rng(0), prompt=8, answers=[4, 2])]))


class OwnModel(LlamaForCausalLM):
    """A model that puts attention of its own into its first layer."""

    def __init__(self, config):
        super().__init__(config)
        self.model.layers[0].self_attn = OwnAttention(config, 0)


class NeedsValues(LlamaForCausalLM):
    """A model that looks at its input, which fake tensors do not have."""

    def forward(self, input_ids=None, **kwargs):
        assert input_ids[0, 0].item() >= 0
        return super().forward(input_ids, **kwargs)


class NotSmall(LlamaForCausalLM):
    """A model of one size alone, of which no small copy can be made."""

    def __init__(self, config):
        if config.hidden_size != 48:
            raise ValueError("this is a model of width 48. It takes no other")
        super().__init__(config)


def _kernel(states):
    raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")


KERNEL = types.FunctionType(_kernel.__code__, {"__name__": "triton.runtime.jit", "ValueError": ValueError})


class NeedsGpu(LlamaForCausalLM):
    """A model with a kernel that transformers took from an installed package, for a GPU alone."""

    def forward(self, input_ids=None, **kwargs):
        KERNEL(input_ids)
        return super().forward(input_ids, **kwargs)


class NotSmallNeedsValues(NeedsValues, NotSmall):
    """Neither a small copy nor fake tensors tell anything of it."""


def test_attention_that_a_model_overrides_is_found_from_its_class_alone():
    with pytest.raises(
        UserError, match="OwnModel computes attention by code of its own in 1 of its 2 layers"
    ):
        check_computed(OwnModel, tiny_model().config)


@pytest.mark.parametrize("kind", KINDS)
def test_the_librarys_models_pass_without_weights(kind):
    model = tiny_model(kind)
    assert check_computed(type(model), model.config)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (
            "roberta",
            r"RobertaForCausalLM does more between .* \(addmm, gelu, native_layer_norm\)",
        ),
        ("doge", "asks for `attention_mask`"),
    ],
)
def test_what_stands_between_hidden_states_and_logits_or_masks_by_itself_is_found(kind, sentence):
    """BERT's kind scored 4 to 10 nats of 33 wrongly, and trained without a word."""
    config = CONFIG_MAPPING[kind](
        num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(UserError, match=sentence):
        check_computed(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)


class SoftCapped(LlamaForCausalLM):
    """Llama whose logits are scaled and capped by code that no key of the configuration tells of."""

    def forward(self, input_ids=None, **kwargs):
        output = super().forward(input_ids, **kwargs)
        output.logits = torch.tanh(output.logits * 0.7 / 2.0) * 2.0
        return output


class Centred(LlamaForCausalLM):
    """Llama whose logits have a mean of 0, which is no step with numbers."""

    def forward(self, input_ids=None, **kwargs):
        output = super().forward(input_ids, **kwargs)
        output.logits = output.logits - output.logits.mean(-1, keepdim=True)
        return output


class Shortened(LlamaForCausalLM):
    """Llama that gives logits for a part of its vocabulary."""

    def forward(self, input_ids=None, **kwargs):
        output = super().forward(input_ids, **kwargs)
        output.logits = output.logits[..., :100]
        return output


def test_steps_behind_the_head_are_done_again():
    """Noted in the model's own forward: log-probs and gradients are those of its own logits."""
    model = SoftCapped(tiny_model().config).double().eval()
    example = make_example(np.random.default_rng(0), prompt=8, answers=[4, 2])
    expected = plain_pair_logps(model, [example])
    assert [step.after for step in tail_of(model).after] == [(0.7,), (2.0,), (), (2.0,)]
    model.set_attn_implementation(ATTENTION)
    assert check_computed(SoftCapped, model.config)
    actual = pair_logps(model, pack([example]))
    torch.testing.assert_close(actual.chosen, expected.chosen, rtol=1e-6, atol=0)
    wanted = gradients(model, expected.chosen.sum() - expected.rejected.sum())
    assert_close(gradients(model, actual.chosen.sum() - actual.rejected.sum()), wanted)


@pytest.mark.parametrize(
    ("kind", "what"), [(Centred, r"\(mean, sub\)"), (Shortened, r"\(a cut of the vocabulary\)")]
)
def test_other_changes_of_the_logits_are_refused(kind, what):
    with pytest.raises(UserError, match=rf"{kind.__name__} does more between .* simple steps {what}"):
        check_computed(kind, tiny_model().config)


def test_granites_factor_of_one_is_harmless_and_a_mixture_of_experts_can_be_proven():
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    granite = CONFIG_MAPPING["granite"](**sizes)
    assert check_computed(MODEL_FOR_CAUSAL_LM_MAPPING[type(granite)], granite)
    mixtral = CONFIG_MAPPING["mixtral"](**sizes, intermediate_size=32)
    assert check_computed(MODEL_FOR_CAUSAL_LM_MAPPING[type(mixtral)], mixtral)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("kind", [NotSmall, NotSmallNeedsValues])
def test_a_model_that_has_no_small_copy_is_left_to_its_first_forward_and_that_is_said(kind, capsys):
    assert check_computed(NeedsValues, tiny_model().config)
    assert not check_computed(kind, tiny_model(hidden_size=48).config)
    said = capsys.readouterr().err
    assert f"No small {kind.__name__} runs on a CPU (this is a model of width 48)" in said
    assert "was not proven; `align verify` compares them" in said


OWN_CODE = """
import torch
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaForCausalLM

class OwnAttention(LlamaAttention):
    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        return self.o_proj(self.q_proj(hidden_states)), None

class OwnModel(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn = OwnAttention(config, layer.self_attn.layer_idx)
"""


def test_code_of_a_repository_is_found_before_its_weights_are_read(tmp_path):
    """The folder has no weights at all: the sentence comes first."""
    config = tiny_model().config
    config.auto_map = {"AutoModelForCausalLM": "modeling_own.OwnModel"}
    config.save_pretrained(tmp_path)
    (tmp_path / "modeling_own.py").write_text(OWN_CODE)
    settings = ModelSettings(path=str(tmp_path), trust_remote_code=True)
    with (
        pytest.warns(UserWarning, match="trust_remote_code"),
        pytest.raises(UserError, match="OwnModel computes attention by code of its own in 2 of its 2 layers"),
    ):
        check_architecture(settings)
    check_architecture(ModelSettings(path=str(tmp_path)))  # the library's own class


def test_a_mixture_of_experts_says_what_it_leaves_out(tmp_path):
    """Its load-balancing loss, also where the checkpoint's configuration asks for the router's logits."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    CONFIG_MAPPING["mixtral"](**sizes, intermediate_size=32, output_router_logits=True).save_pretrained(
        tmp_path
    )
    with pytest.warns(UserWarning, match="mixture of 8 experts: its load-balancing loss takes no part"):
        check_architecture(ModelSettings(path=str(tmp_path)))


def test_a_kernel_that_needs_a_gpu_is_no_reason_to_refuse(capsys):
    """Where flash-linear-attention is installed, layers with a state run on a GPU alone."""
    assert not check_computed(NeedsGpu, tiny_model().config)
    assert "No small NeedsGpu runs on a CPU (Pointer argument cannot be accessed" in capsys.readouterr().err


def test_a_configuration_that_transformers_has_no_causal_model_for_is_refused(tmp_path):
    """It ended in the library's traceback when weights were to be loaded."""
    CONFIG_MAPPING["vit"]().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no causal language model of type vit"):
        check_architecture(ModelSettings(path=str(tmp_path)))
