"""LoRA's usual targets under the names that other kinds of attention have for them."""

from __future__ import annotations

import pytest
from transformers import CONFIG_MAPPING

from align.adapters.adapter import add_adapter
from align.adapters.lora import Lora
from align.core.errors import UserError
from align.longseq.small_model import build_small
from align.models.loading import library_class
from tests.families import FAMILIES

LATENT = {"kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
USUAL = {"q_proj", "k_proj", "v_proj", "o_proj"}
CASES = {
    "llama": USUAL,
    "phi3": {"qkv_proj", "o_proj"},
    "deepseek_v3": LATENT | {"q_a_proj", "q_b_proj"},
    "minicpm3": LATENT | {"q_a_proj", "q_b_proj"},
    "kimi_linear": LATENT | USUAL,
    "minimax": USUAL,
}


def small_model(kind: str):
    config = CONFIG_MAPPING[kind](**(FAMILIES[kind].values if kind in FAMILIES else {}))
    return build_small(library_class(config), config)


@pytest.mark.parametrize("kind", CASES)
def test_the_usual_names_stand_for_the_models_own(kind):
    adapted = add_adapter(small_model(kind), Lora(r=2))
    found = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1]
        for name, _ in adapted.named_parameters()
        if "lora_A" in name
    }
    assert found == CASES[kind]


def test_a_name_that_a_model_lacks_is_answered_with_those_that_it_has():
    with pytest.raises(UserError) as refused:
        add_adapter(small_model("lfm2"), Lora(r=2))
    assert str(refused.value) == (
        "adapter.target_modules names o_proj, which Lfm2ForCausalLM does not have: name some of k_proj, "
        "out_proj, q_proj, v_proj, w1, w2, w3, or set adapter.target_modules=[all-linear]."
    )
