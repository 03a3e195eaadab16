"""Tiny random models whose layers keep a state, and a context in which they compute in float64 throughout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 3,
    "attention_dropout": 0.0,
    "max_position_embeddings": 2048,
}
_BOTH = {"layer_types": ["linear_attention", "full_attention"]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SHARED_EXPERT = {"shared_expert_intermediate_size": 16}
_DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 16,
}
_MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
_KIMI = {"layer_types": ["linear_attention"] * 2, "mlp_layer_types": ["dense"] * 2, "head_dim": 16}
_ZAMBA = {
    "layers_block_type": ["linear_attention", "hybrid"],
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
    "num_key_value_heads": 4,
    "mamba_d_state": 8,
}

# `model_type` of transformers → its keys beside the common ones.
KINDS: dict[str, dict[str, Any]] = {
    "qwen3_next": _DELTA | _BOTH | _EXPERTS | _SHARED_EXPERT,
    "qwen3_5_text": _DELTA | _BOTH,
    "qwen3_5_moe_text": _DELTA | _BOTH | _EXPERTS | _SHARED_EXPERT,
    "olmo_hybrid": _DELTA | _BOTH | {"linear_num_key_heads": 4},
    "nemotron_h": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
    },
    "granitemoehybrid": _MAMBA2
    | _BOTH
    | {"shared_intermediate_size": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon_h1": _MAMBA2 | {"mamba_d_ssm": 64, "head_dim": 16},
    "bamba": _MAMBA2 | {"attn_layer_indices": [1]},
    "jamba": {
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "num_experts": 4,
    },
    "minimax": _BOTH | {"num_local_experts": 4, "block_size": 8, "head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1} | _EXPERTS,
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "zamba": _ZAMBA | {"mamba_dt_rank": 4, "n_mamba_heads": 2},
    "zamba2": _ZAMBA
    | {"mamba_ngroups": 1, "n_mamba_heads": 4, "chunk_size": 8, "num_mem_blocks": 1, "adapter_rank": 4},
    # Models of nothing else, which hand no keywords on to their layers.
    "mamba": {"state_size": 8, "time_step_rank": 4, "expand": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    # Convolutions within attention, which no rule here names.
    "zaya": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
}
# Their other layers have multi-head latent attention or choose whom to attend: here are those with a state alone.
STATES_ALONE: dict[str, dict[str, Any]] = {
    "kimi_linear": _KIMI | {"num_experts": 4, "linear_head_dim": 8, "linear_num_heads": 4},
    "bailing_hybrid": _KIMI | _EXPERTS,
    "qwen4_exp_text": _DELTA
    | _EXPERTS
    | _SHARED_EXPERT
    | {"layer_types": ["linear_attention"] * 2, "ple_layer_ids": [1], "ngram_vocab_size_base": 500}
    | {"hc_count": 2, "hc_lowrank": 8},
}
# Its blocks hold their state themselves; the cap on its logits, for which the family is refused, is out of reach here.
ITS_OWN_CACHE: dict[str, dict[str, Any]] = {
    "recurrent_gemma": {
        "lru_width": 32,
        "block_types": ["recurrent", "attention"],
        "num_key_value_heads": 1,
        "logits_soft_cap": 1e12,
        "sliding_window": 512,
    }
}


def state_model(kind: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random causal model of one of the kinds above, float32, in eval mode.

    Biases, norms and decays are moved from where a fresh model has them, all alike, so that each is seen to matter.

    Args:
        kind: the `model_type` of transformers.
        seed: fixes the weights.
        overrides: keys of the model's configuration.
    """
    config = CONFIG_MAPPING[kind](**(_COMMON | (KINDS | STATES_ALONE | ITS_OWN_CACHE)[kind] | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, weight in model.named_parameters():
            if weight.dim() == 1 or "norm" in name:
                weight.data += 0.1 * torch.randn(weight.shape)
    return model.eval()


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """The model with float64 weights and, for experts, the library's loop, as its kernel takes no float64."""
    model.set_experts_implementation("eager")
    model.double()
    for module in model.modules():
        if isinstance(module, MiniMaxLightningAttention):  # whose decays were rounded to float32
            module.slope_rate = module.get_slope_rate().double()
            decays = module.decay_factors(module.slope_rate)
            module.query_decay, module.key_decay, module.diagonal_decay = decays
    return model


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Within it, what asks for float32 gets float64: norms, scans and decays that the library computes in float32.

    What two ways of computing differ by is then what they compute, not how float32 rounds in each.
    """
    names = patch.multiple(torch, float32=torch.float64, float=torch.float64)
    with names, patch.object(Tensor, "float", Tensor.double):
        yield
