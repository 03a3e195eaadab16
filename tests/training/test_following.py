"""A reference that follows the policy: values, TRL's callback, checkpoints, processes, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from trl.trainer.callbacks import SyncRefModelCallback

from align.adapters.lora import Lora
from align.core.errors import UserError
from align.longseq import ATTENTION, pair_logps
from align.reference.settings import ReferenceSettings, check_follow, check_follow_wrapper
from align.reference.sources import Frozen
from align.training.following import Following, follow
from tests.distributed import run_distributed
from tests.longseq.plain import assert_close
from tests.tiny import tiny_model
from tests.training.helpers import DPO, make_trainer, weights


def model(seed: int = 0, **overrides: Any) -> Any:
    made = tiny_model(seed=seed, initializer_range=0.1, **overrides)
    made.set_attn_implementation(ATTENTION)
    return made.eval().requires_grad_(False)


def of_numbers(values: list[float], dtype: torch.dtype = torch.float32) -> nn.Module:
    linear = nn.Linear(1, len(values), bias=False, dtype=dtype)
    linear.weight.data = torch.tensor(values, dtype=dtype)[:, None]
    return linear


def moved(policy: nn.Module, reference: nn.Module, alpha: float) -> Tensor:
    Following(Frozen(lambda: reference, pair_logps), steps=1, alpha=alpha).follow(policy)
    return reference.weight[:, 0]


def test_value() -> None:
    """0.6·2 + 0.4·1, 0.6·(−1) + 0.4·4; α = 1 makes it the policy, to the bit, and what is equal stays."""
    assert moved(of_numbers([2, -1]), of_numbers([1, 4]), 0.6).tolist() == pytest.approx([1.6, 1.0], abs=1e-6)
    policy = of_numbers([0.1, 1e-30, 3e7])
    assert torch.equal(moved(policy, of_numbers([5, 5, 5]), 1.0), policy.weight[:, 0])
    assert torch.equal(moved(policy, of_numbers([0.1, 1e-30, 3e7]), 0.3), policy.weight[:, 0])


def test_low_precision_is_rounded_once() -> None:
    """fp32 policy, bf16 reference: the nearest bf16 of 0.5·1.01 + 0.5·1."""
    found = moved(of_numbers([1.01]), of_numbers([1.0], torch.bfloat16), 0.5)
    assert found.dtype == torch.bfloat16 and found.item() == torch.tensor(1.005).bfloat16().item()


def test_as_trls_callback() -> None:
    policy, reference, theirs = model(0), model(1), model(1)
    Following(Frozen(lambda: reference, pair_logps), steps=1, alpha=0.6).follow(policy)
    SyncRefModelCallback._sync_target_model(policy, theirs, 0.6)
    for own, other in zip(reference.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-7)


def trained(folder: Path, parallel: Any = None, resume: str | None = None, **arguments: Any) -> Any:
    """DPO for four steps against a reference that follows after every second."""
    trainer = make_trainer(
        folder,
        method=DPO,
        reference=Frozen(model, partial(pair_logps, parallel=parallel)),
        parallel=parallel,
        rows=16,
        **{"max_steps": 4} | arguments,
    )
    follow(trainer, steps=2, alpha=0.6)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def of_reference(trainer: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.reference.model.named_parameters()}


def test_it_follows_at_its_steps_and_changes_what_is_learnt(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    trainer = trained(tmp_path, **saving)
    start = dict(model().named_parameters())
    kept = {
        step: load_file(tmp_path / f"checkpoint-{step}" / "reference.safetensors") for step in (1, 2, 3, 4)
    }
    policy = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    for name, value in start.items():
        assert torch.equal(kept[1][name], value) and torch.equal(kept[2][name], kept[3][name])
        torch.testing.assert_close(kept[2][name], 0.6 * policy[name] + 0.4 * value, rtol=1e-5, atol=1e-7)
        assert torch.equal(kept[4][name], of_reference(trainer)[name])
    assert any(not torch.equal(kept[2][name], kept[4][name]) for name in start)
    still = make_trainer(tmp_path, method=DPO, reference=Frozen(model, pair_logps), rows=16, max_steps=4)
    still.train()
    assert any(not torch.equal(weights(still)[name], value) for name, value in weights(trainer).items())


@pytest.mark.parametrize("step", [2, 3])
def test_a_resumed_run_has_the_reference_of_its_checkpoint(tmp_path: Path, step: int) -> None:
    """Policy and reference of an unbroken run, to the bit."""
    unbroken = trained(tmp_path, save_strategy="steps", save_steps=step)
    resumed = trained(tmp_path, resume=str(tmp_path / f"checkpoint-{step}"))
    for found, expected in ((weights, weights), (of_reference, of_reference)):
        for name, value in expected(unbroken).items():
            assert torch.equal(found(resumed)[name], value), name
    (tmp_path / f"checkpoint-{step}" / "reference.safetensors").unlink()
    with pytest.raises(UserError, match="weights of the reference that follows"):
        trained(tmp_path, resume=str(tmp_path / f"checkpoint-{step}"))


def on_two(rank: int, size: int, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """DDP over two groups, with a resumed run between."""
    settings = {"per_device_train_batch_size": 2}
    trained(folder, save_strategy="steps", save_steps=2, max_steps=2, **settings)
    trainer = trained(folder, resume=str(folder / "checkpoint-2"), **settings)
    return weights(trainer), of_reference(trainer)


def test_two_processes_have_one_reference(tmp_path: Path) -> None:
    alone = trained(tmp_path / "alone")
    found = run_distributed(on_two, 2, tmp_path / "two")
    for policy, reference in found:
        assert_close(policy, weights(alone), tolerance=1e-5)
        assert_close(reference, of_reference(alone), tolerance=1e-5)
    for name, value in found[0][1].items():
        assert torch.equal(found[1][1][name], value), "every process has the same reference, to the bit"


REFUSED = [
    ({"follow_steps": 0}, {}, "reference.follow_steps=0 has to be 1 or more"),
    ({"follow_alpha": 0.0}, {}, "reference.follow_alpha=0.0 has to lie in"),
    ({}, {"source": "none"}, "and this method has none: leave it out"),
    ({}, {"adapter": Lora(r=4), "source": "adapter_off"}, "adapter=lora trains others: set adapter=none"),
    ({"cache": "folder"}, {}, "log-probs of earlier steps say nothing: leave reference.cache out"),
    ({"sharding": "full"}, {}, "whole on every process: leave reference.sharding=full out"),
]


@pytest.mark.parametrize(("settings", "asked", "sentence"), REFUSED)
def test_what_cannot_follow_is_refused(settings: dict, asked: dict, sentence: str) -> None:
    given = {"follow_steps": 2} | settings
    with pytest.raises(UserError, match=sentence):
        check_follow(ReferenceSettings(**given), **{"source": "frozen", "adapter": None} | asked)


def test_split_weights_are_refused() -> None:
    for wrapper in ("fsdp2", "zero3", "zero3_offload"):
        with pytest.raises(UserError, match=f"and {wrapper} splits them: launch with ddp"):
            check_follow_wrapper(ReferenceSettings(follow_steps=2), wrapper)
    check_follow_wrapper(ReferenceSettings(follow_steps=2), "zero2")
    check_follow_wrapper(ReferenceSettings(), "fsdp2")


def test_another_model_is_refused(tmp_path: Path) -> None:
    other = Frozen(lambda: model(intermediate_size=48), pair_logps)
    trainer = make_trainer(tmp_path, method=DPO, reference=other)
    with pytest.raises(UserError, match="needs a reference of the policy's architecture, and their weights"):
        follow(trainer, steps=1, alpha=0.5)
