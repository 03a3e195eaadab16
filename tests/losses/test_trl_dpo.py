"""Our losses equal TRL's DPOTrainer on the same model, pairs and settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trl import DPOConfig, DPOTrainer

from losses import (
    LossOutput,
    RewardShift,
    aot_loss,
    aot_unpaired_loss,
    bco_loss,
    dpo_loss,
    ipo_loss,
    robust_dpo_loss,
    sft_loss,
)
from tests.losses.trl_oracle import batch, build, pair, reference_pair
from tests.tiny import tiny_model

BETA = 0.3


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("dpo")
    return build(DPOTrainer, DPOConfig, folder, beta=BETA, trainer_keywords={"ref_model": tiny_model(seed=1)})


def trl_loss(trainer: Any, loss_types: dict[str, float], smoothing: float, size: int = 3) -> float:
    """TRL's loss on the first `size` pairs; `loss_types` with their weights."""
    trainer.loss_types, trainer.loss_weights = list(loss_types), list(loss_types.values())
    trainer.label_smoothing = smoothing
    return trainer.compute_loss(trainer.model, batch(trainer, size)).item()


def mean(output: LossOutput) -> float:
    return output.loss.mean().item()


def test_dpo_and_its_rewards(trainer: Any) -> None:
    output = dpo_loss(*reference_pair(trainer), beta=BETA)
    trainer._metrics["eval"].clear()
    expected = trl_loss(trainer, {"sigmoid": 1.0}, 0.0)
    assert mean(output) == pytest.approx(expected, abs=1e-5)
    logged = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    assert output.chosen_reward.mean().item() == pytest.approx(logged["rewards/chosen"], abs=1e-5)
    assert output.rejected_reward.mean().item() == pytest.approx(logged["rewards/rejected"], abs=1e-5)


def test_ipo(trainer: Any) -> None:
    expected = trl_loss(trainer, {"ipo": 1.0}, 0.0)
    assert mean(ipo_loss(*reference_pair(trainer), beta=BETA)) == pytest.approx(expected, abs=1e-5)


def test_robust_dpo(trainer: Any) -> None:
    expected = trl_loss(trainer, {"robust": 1.0}, 0.2)
    assert mean(robust_dpo_loss(*reference_pair(trainer), beta=BETA, label_smoothing=0.2)) == pytest.approx(
        expected, abs=1e-5
    )


def test_conservative_dpo(trainer: Any) -> None:
    """TRL smooths labels in `aot_unpaired`, whose sorting does nothing on one pair: then it is cDPO."""
    expected = trl_loss(trainer, {"aot_unpaired": 1.0}, 0.2, size=1)
    output = dpo_loss(*reference_pair(trainer, size=1), beta=BETA, label_smoothing=0.2)
    assert mean(output) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_aot(trainer: Any, smoothing: float) -> None:
    """TRL's batch of three pairs as a step of three prompts."""
    for name, loss in (("aot", aot_loss), ("aot_unpaired", aot_unpaired_loss)):
        expected = trl_loss(trainer, {name: 1.0}, smoothing)
        output = loss(*reference_pair(trainer), beta=BETA, label_smoothing=smoothing)
        assert mean(output) == pytest.approx(expected, abs=1e-5)


def test_bco(trainer: Any) -> None:
    """TRL's `bco_pair` has no running mean: δ = 0, as ours before its first step."""
    expected = trl_loss(trainer, {"bco_pair": 1.0}, 0.0)
    output = bco_loss(*reference_pair(trainer), beta=BETA, shift=RewardShift())
    assert mean(output) == pytest.approx(expected, abs=1e-5)


def test_dpo_with_nll_and_sft(trainer: Any) -> None:
    """TRL averages the NLL over the tokens of the batch, so one pair makes both means the same."""
    expected = trl_loss(trainer, {"sigmoid": 1.0, "sft": 0.1}, 0.0, size=1)
    policy, reference = reference_pair(trainer, size=1)
    assert mean(dpo_loss(policy, reference, beta=BETA, nll_weight=0.1)) == pytest.approx(expected, abs=1e-5)
    sft = trl_loss(trainer, {"sft": 1.0}, 0.0, size=1)
    assert mean(sft_loss(policy)) == pytest.approx(sft, abs=1e-5)


def test_gradient_of_dpo(trainer: Any) -> None:
    """Also the gradient of a weight: 1e-4 relative, as fp32 sums in another order."""
    weight = trainer.model.lm_head.weight
    trainer.loss_types, trainer.loss_weights, trainer.label_smoothing = ["sigmoid"], [1.0], 0.0
    inputs = batch(trainer)
    (expected,) = torch.autograd.grad(trainer.compute_loss(trainer.model, inputs), weight)
    _, reference = reference_pair(trainer)
    logits = trainer.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    logps = logits[:, :-1].log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    mask = inputs["completion_mask"][:, 1:]
    sums, lengths = (logps * mask).sum(1), mask.sum(1)
    policy = pair((sums[:3], lengths[:3]), (sums[3:], lengths[3:]))
    (found,) = torch.autograd.grad(dpo_loss(policy, reference, beta=BETA).loss.mean(), weight)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-4
