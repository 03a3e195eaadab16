"""Each of PEFT's tuners that is allowed gives the padded rows' loss and gradients, is undone, merged and stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn

from align.adapters.library import Library
from align.adapters.tuners import REFUSED, TUNERS
from align.core.errors import UserError
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.small_model import draw_adapter
from losses import logo_loss
from tests.longseq.plain import assert_close, gradients, make_example, plain_pair_logps
from tests.tiny import tiny_model

# What a tuner needs to go on a model of width 64, or else would train next to nothing.
OPTIONS: dict[str, dict[str, Any]] = {
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 50},
    "HRA": {"r": 4},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "OFT": {"oft_block_size": 16},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "UNILORA": {},
    "VBLORA": {"num_vectors": 8, "vector_length": 16, "topk": 2},
    "VERA": {"r": 8},
    "WAVEFT": {"n_frequency": 50},
}
TARGETS: dict[str, list[str]] = {
    "IA3": ["k_proj", "v_proj", "down_proj"],
    "LN_TUNING": ["all-norms"],
}


def adapter(name: str) -> Library:
    return Library(name, TARGETS.get(name, ["q_proj", "v_proj", "down_proj"]), options=OPTIONS.get(name, {}))


def base() -> Any:
    return tiny_model(initializer_range=0.1, seed=0)


def examples() -> list[Any]:
    rng = np.random.default_rng(0)
    return [
        make_example(rng, prompt=prompt, answers=answers, jump=30)
        for prompt, answers in ((21, (5, 9, 3)), (14, (8, 2, 6)))
    ]


def adapted(name: str) -> Any:
    torch.manual_seed(0)
    policy = adapter(name).add(base())
    draw_adapter(policy)
    return doubled(policy).train()


def doubled(policy: Any) -> Any:
    """In fp64: gradients that are small differences of large numbers (RandLoRA's) have 4 digits in fp32."""
    for module in policy.double().modules():
        for name, values in module.named_buffers(recurse=False):
            if values.is_floating_point():
                setattr(module, name, values.double())
    return policy


def reading(policy: Any, attention: str) -> Any:
    policy.get_base_model().set_attn_implementation(attention)
    return policy


def loss_of(logps: Any) -> torch.Tensor:
    return logo_loss(logps, beta=1.0, gamma=0.5, sft_weight=0.1).loss.sum()


def step(policy: Any) -> dict[str, torch.Tensor]:
    """Loss and gradients of a step on packed rows."""
    loss = loss_of(pair_logps(policy, pack(examples()), nll_scope="chosen", chunk_size=8))
    return {"loss": loss.detach()[None], **gradients(policy, loss)}


@pytest.mark.parametrize("name", TUNERS)
def test_a_tuner_is_exact(name: str, tmp_path: Path) -> None:
    policy = adapted(name)
    plain = loss_of(plain_pair_logps(reading(policy, "sdpa"), examples()))
    expected = {"loss": plain.detach()[None], **gradients(policy, plain)}
    assert_close(step(reading(policy, ATTENTION)), expected, tolerance=1e-6)
    levered = reading(
        adapted(name), ATTENTION
    )  # no copy, which would lack the hooks that OSF has on its weights
    apply_checkpointing(levered, "full", mlp_chunk=7)
    assert_close(step(levered), expected, tolerance=1e-6)
    held_against_the_base(policy)
    stored(policy, expected["loss"], tmp_path)
    if TUNERS[name].mergeable:
        merged(policy, expected["loss"])


def held_against_the_base(policy: Any) -> None:
    """Off it is the starting model, to the last bit; on it is another one."""
    start = doubled(base())
    start.set_attn_implementation(ATTENTION)
    batch = pack(examples())
    with torch.no_grad():
        expected = pair_logps(start, batch)
        with policy.disable_adapter():
            off = pair_logps(policy, batch)
        on = pair_logps(policy, batch)
    assert torch.equal(off.chosen, expected.chosen) and torch.equal(off.rejected, expected.rejected)
    assert not torch.allclose(on.chosen, expected.chosen)


def stored(policy: Any, loss: torch.Tensor, folder: Path) -> None:
    """Written by PEFT and read again it is the same."""
    policy.save_pretrained(folder)
    again = peft.PeftModel.from_pretrained(base(), folder)
    found = loss_of(pair_logps(reading(doubled(again), ATTENTION), pack(examples()), nll_scope="chosen"))
    torch.testing.assert_close(found.detach()[None], loss, rtol=1e-6, atol=1e-6)


def merged(policy: Any, loss: torch.Tensor) -> None:
    """Merged it is an ordinary model with the same loss."""
    plain: nn.Module = policy.merge_and_unload(safe_merge=True)
    assert not isinstance(plain, peft.PeftModel)
    found = loss_of(pair_logps(plain, pack(examples()), nll_scope="chosen"))
    torch.testing.assert_close(found.detach()[None], loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted({kind.value for kind in peft.PeftType} - TUNERS.keys()))
def test_every_other_tuner_of_the_library_is_refused_with_its_reason(name: str) -> None:
    assert name in REFUSED
    with pytest.raises(UserError, match=f"adapter.type={name} is refused: it "):
        Library(name).check()
