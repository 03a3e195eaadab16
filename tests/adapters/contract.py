"""What every adapter is held to: the padded rows' loss and gradients, undone, merged and stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from torch import nn

from align.adapters.adapter import Adapter
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.small_model import draw_adapter
from losses import logo_loss
from tests.longseq.plain import assert_close, gradients, make_example, plain_pair_logps
from tests.tiny import tiny_model


def held_to_the_contract(adapter: Adapter, folder: Path) -> None:
    """Loss and gradients with and without memory levers; off; merged; saved and loaded."""
    policy = adapted(adapter)
    plain = loss_of(plain_pair_logps(reading(policy, "sdpa"), examples()))
    expected = {"loss": plain.detach()[None], **gradients(policy, plain)}
    assert_close(step(reading(policy, ATTENTION)), expected, tolerance=1e-6)
    levered = reading(
        adapted(adapter), ATTENTION
    )  # no copy, which would lack the hooks that OSF has on its weights
    apply_checkpointing(levered, "full", mlp_chunk=7)
    assert_close(step(levered), expected, tolerance=1e-6)
    held_against_the_base(policy)
    stored(policy, expected["loss"], folder)
    if not adapter.soft_tokens:  # which no ordinary model has a place for
        merged(policy, expected["loss"])


def base() -> Any:
    return tiny_model(initializer_range=0.1, seed=0)


def examples() -> list[Any]:
    rng = np.random.default_rng(0)
    return [
        make_example(rng, prompt=prompt, answers=answers, jump=30)
        for prompt, answers in ((21, (5, 9, 3)), (14, (8, 2, 6)))
    ]


def adapted(adapter: Adapter) -> Any:
    torch.manual_seed(0)
    policy = adapter.add(base())
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


def held_to_an_initialisation(adapter: Adapter, folder: Path) -> None:
    """The starting model at first, in fp32; moved it is stored, loaded and merged as it is."""
    torch.manual_seed(0)
    policy, start = reading(adapter.add(base()), ATTENTION), base()
    start.set_attn_implementation(ATTENTION)
    with torch.no_grad():
        first = pair_logps(policy, pack(examples())).chosen
        torch.testing.assert_close(first, pair_logps(start, pack(examples())).chosen, rtol=1e-5, atol=1e-5)
        draw_adapter(policy)
        moved = pair_logps(policy, pack(examples())).chosen
        assert not torch.allclose(moved, first, atol=1e-3)
        policy.save_pretrained(folder)
        again = reading(peft.PeftModel.from_pretrained(base(), folder), ATTENTION)
        found = pair_logps(again, pack(examples())).chosen
        merged_logps = pair_logps(again.merge_and_unload(safe_merge=True), pack(examples())).chosen
    torch.testing.assert_close(found, moved, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged_logps, moved, rtol=1e-5, atol=1e-4)
