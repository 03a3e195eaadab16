"""With memory's levers on nothing is as long as the row and as wide as the vocabulary or an MLP; the rest is counted.

The table in docs/long-sequences.md ("What is as long as the row") is the one that is checked here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.last_norm import last_norm
from align.models.small import small
from align.planning.live import Live
from tests.longseq.plain import make_example
from tests.tiny import tiny_model

ROW = 509  # tokens: a prompt and two answers; a prime, so that no weight has as many numbers
ANSWERS = [28, 20]
CHUNK = 16  # tokens of a tile, and of a slice of the head
HIDDEN, MLP, VOCABULARY = 32, 208, 304
HEADS, KV_HEADS, WIDTH = 8, 2, 8
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "vocab_size": VOCABULARY,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": WIDTH,
}
EXPERTS = {"moe_intermediate_size": MLP, "num_experts": 4, "num_experts_per_tok": 2}
WINDOW = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "llama": {},
    "qwen3": {},
    "phi3": {},
    "gemma3_text": WINDOW | {"query_pre_attn_scalar": WIDTH},
    "qwen3_moe": EXPERTS,
}


class Largest(TorchDispatchMode):
    """The most numbers that a tensor of any operation has, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.numbers = max(self.numbers, tensor.numel())
        return output


def build(family: str = "llama", *, lora: bool = False, **sizes: Any) -> nn.Module:
    model: nn.Module = tiny_model(family, **(SIZES | FAMILIES[family] | sizes))
    model.set_attn_implementation(ATTENTION)
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
        model.enable_input_require_grads()
    return model.train()


def step(model: nn.Module, *, row: int = ROW, scope: str = "none", chunk: int = CHUNK) -> None:
    """Loss and gradients of one row, which are dropped as they come."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    example = make_example(np.random.default_rng(0), prompt=row - sum(ANSWERS), answers=ANSWERS)
    logps = pair_logps(model, pack([example]), nll_scope=scope, chunk_size=chunk)
    loss = (logps.chosen - logps.rejected[:, 0]).sum()
    (loss if logps.nll is None else loss + logps.nll.sum()).backward()


def largest(model: nn.Module, scope: str = "none", chunk: int = CHUNK) -> int:
    with Largest() as found:
        step(model, scope=scope, chunk=chunk)
    return found.numbers


@pytest.mark.parametrize(
    ("family", "mode", "scope", "lora"),
    [
        *((family, "full", "sequence", False) for family in FAMILIES),
        ("llama", "keep_attention", "sequence", False),
        ("phi3", "keep_attention", "none", True),
        ("gemma3_text", "full", "none", True),
    ],
)
def test_nothing_is_as_long_as_the_row_and_as_wide_as_the_mlp_or_the_vocabulary(family, mode, scope, lora):
    """The longest is a row of queries, 8 · 8 numbers a token; of experts, all their weights."""
    model = build(family, lora=lora)
    apply_checkpointing(model, mode, mlp_chunk=CHUNK, offload="disk")
    most = max(ROW * HEADS * WIDTH, max(weight.numel() for weight in model.parameters()))
    assert most < ROW * min(MLP, VOCABULARY)
    assert largest(model, scope) <= most


def test_without_the_levers_there_are_such_tensors():
    """Which shows that the test above would see them."""
    checkpointed = build()
    apply_checkpointing(checkpointed, "full")
    assert largest(checkpointed, "sequence") == ROW * MLP
    whole = build()
    apply_checkpointing(whole, "full", mlp_chunk=CHUNK)
    assert largest(whole, "sequence", chunk=ROW) == (ROW - 1) * VOCABULARY  # no token is scored from the last


def peak(model: nn.Module, row: int, dtype: torch.dtype, scope: str = "none") -> float:
    """Numbers a token at the peak of a step, but for weights and their gradients."""
    live = Live({weight.numel() for weight in model.parameters()})
    for weight in model.parameters():
        live.know(weight)
    with live:
        step(model, row=row, scope=scope)
    return live.peak / row / dtype.itemsize


# Layers whose attention is wide, so that a step's peak is in a layer: query heads, key-value heads.
WIDE = [(16, 2), (16, 4)]


@pytest.mark.parametrize(("heads", "kv_heads"), WIDE)
def test_a_layer_needs_what_the_table_says(heads, kv_heads):
    """2 h + 5 q + 6 k and a log-sum-exp a head; tiles of 16 of 2,039 tokens, and 2 % for tables and ids."""
    model = build(num_hidden_layers=1, num_attention_heads=heads, num_key_value_heads=kv_heads)
    apply_checkpointing(model, "full", mlp_chunk=CHUNK)
    table = 2 * HIDDEN + 5 * heads * WIDTH + 6 * kv_heads * WIDTH + heads
    assert 0.96 * table <= peak(model, 2039, torch.float32) <= 1.03 * table + 0.02 * MLP


@pytest.mark.parametrize("scope", ["none", "sequence"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_norm_needs_no_more_than_a_layer(dtype, scope):
    """With the proportions of Llama-3-8B, h = q = 4 k, where it would need 13 h in bf16 over the whole row."""
    model = build(num_hidden_layers=1, hidden_size=128, num_attention_heads=16).to(dtype)
    apply_checkpointing(model, "full", mlp_chunk=CHUNK)
    with_chunks = 1.05 * (2 * 128 + 5 * 128 + 6 * 16 + 16 * 4 / dtype.itemsize)
    assert peak(model, 2039, dtype, scope) <= with_chunks


@pytest.mark.parametrize(
    ("kind", "name"),
    [("llama", "norm"), ("gemma3_text", "norm"), ("opt", "final_layer_norm"), ("gpt2", None)],
)
def test_a_norm_waits_for_the_head_where_nothing_follows_it(kind, name):
    """GPT-2 gives its norm's output another shape."""
    config = small(CONFIG_MAPPING[kind]())
    assert last_norm(AutoModelForCausalLM.from_config(config)) == name
