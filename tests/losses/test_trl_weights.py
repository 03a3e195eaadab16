"""LD-DPO and WPO equal TRL's DPOTrainer (`ld_alpha`, `use_weighting`) on the same model, pairs and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from losses import PairLogps, dpo_loss, ld_dpo_loss, wpo_loss
from tests.losses.trl_oracle import batch, build
from tests.tiny import tiny_model

BETA = 0.3


def make(folder: Path, **settings: Any) -> Any:
    return build(
        DPOTrainer,
        DPOConfig,
        folder,
        beta=BETA,
        trainer_keywords={"ref_model": tiny_model(seed=1)},
        **settings,
    )


def pair_of(model: Any, inputs: dict[str, Tensor]) -> PairLogps:
    """All that a loss may read of TRL's batch, token by token from full logits, with their graph."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    logps = logits.log_softmax(-1)
    tokens = logps.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    sure = (2 * logps).logsumexp(-1)
    masks = inputs["completion_mask"][:, 1:].bool()
    own = [row[mask] for row, mask in zip(tokens, masks, strict=True)]
    collisions = torch.stack([row[mask].sum() for row, mask in zip(sure, masks, strict=True)])
    half = len(own) // 2
    pairs = list(zip(own[:half], own[half:], strict=True))
    cuts = [min(len(chosen), len(rejected)) for chosen, rejected in pairs]
    return PairLogps(
        torch.stack([chosen.sum() for chosen, _ in pairs]),
        torch.stack([rejected.sum() for _, rejected in pairs])[:, None],
        torch.tensor([len(chosen) for chosen, _ in pairs]),
        torch.tensor([[len(rejected)] for _, rejected in pairs]),
        chosen_front=torch.stack([c[:cut].sum() for (c, _), cut in zip(pairs, cuts, strict=True)])[:, None],
        rejected_front=torch.stack([r[:cut].sum() for (_, r), cut in zip(pairs, cuts, strict=True)])[:, None],
        collision=collisions.view(2, half).T.detach(),
    )


def compare(trainer: Any, loss: Any) -> None:
    """Loss, and the gradient of a weight: 1e-4 relative, as fp32 sums in another order."""
    weight, inputs = trainer.model.lm_head.weight, batch(trainer)
    expected = trainer.compute_loss(trainer.model, inputs)
    with torch.no_grad():
        reference = pair_of(trainer.ref_model, inputs)
    ours = loss(pair_of(trainer.model, inputs), reference).loss.mean()
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    (wanted,) = torch.autograd.grad(expected, weight)
    (found,) = torch.autograd.grad(ours, weight)
    assert ((found - wanted).norm() / wanted.norm()).item() < 1e-4


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_ld_dpo(tmp_path: Path, alpha: float) -> None:
    compare(make(tmp_path, ld_alpha=alpha), lambda *pair: ld_dpo_loss(*pair, beta=BETA, alpha=alpha))


def test_its_rewards_are_trls(tmp_path: Path) -> None:
    trainer = make(tmp_path, ld_alpha=0.4)
    trainer.compute_loss(trainer.model, batch(trainer))
    logged = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    with torch.no_grad():
        pairs = [pair_of(model, batch(trainer)) for model in (trainer.model, trainer.ref_model)]
    output = ld_dpo_loss(*pairs, beta=BETA, alpha=0.4)
    assert output.chosen_reward.mean().item() == pytest.approx(logged["rewards/chosen"], abs=1e-5)
    assert output.rejected_reward.mean().item() == pytest.approx(logged["rewards/rejected"], abs=1e-5)


def test_wpo(tmp_path: Path) -> None:
    trainer = make(tmp_path, use_weighting=True)
    compare(trainer, lambda *pair: wpo_loss(*pair, beta=BETA, weight_cap=float("inf")))
    with torch.no_grad():
        pairs = [pair_of(model, batch(trainer)) for model in (trainer.model, trainer.ref_model)]
    weighted, plain = wpo_loss(*pairs, beta=BETA, weight_cap=float("inf")), dpo_loss(*pairs, beta=BETA)
    assert not torch.allclose(weighted.loss, plain.loss, rtol=1e-2)
