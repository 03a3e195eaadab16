"""Our losses equal TRL's CPOTrainer (SimPO and CPO) on the same model, pairs and settings."""

from __future__ import annotations

from typing import Any

import pytest
from trl.experimental.cpo import CPOConfig, CPOTrainer

from losses import alphapo_loss, cpo_loss, simpo_loss
from tests.losses.trl_oracle import batch, build, labelled_pair

BETA, GAMMA = 2.0, 0.5


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("cpo")
    return build(CPOTrainer, CPOConfig, folder, beta=BETA, loss_type="simpo", simpo_gamma=GAMMA)


def trl_loss(
    trainer: Any, loss_type: str, nll_weight: float, smoothing: float, size: int
) -> tuple[float, dict]:
    """TRL's loss and metrics on the first `size` pairs."""
    trainer.loss_type, trainer.cpo_alpha, trainer.label_smoothing = loss_type, nll_weight, smoothing
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch(trainer, size))
    return loss.item(), metrics


def test_simpo(trainer: Any) -> None:
    inputs = batch(trainer)
    output = simpo_loss(labelled_pair(trainer.model, inputs), beta=BETA, gamma=GAMMA)
    expected, metrics = trl_loss(trainer, "simpo", 0.0, 0.0, size=3)
    assert output.loss.mean().item() == pytest.approx(expected, abs=1e-5)
    assert output.chosen_reward.mean().item() == pytest.approx(metrics["rewards/chosen"], abs=1e-5)
    assert output.rejected_reward.mean().item() == pytest.approx(metrics["rewards/rejected"], abs=1e-5)


def test_alphapo(trainer: Any) -> None:
    output = alphapo_loss(labelled_pair(trainer.model, batch(trainer)), beta=BETA, gamma=GAMMA, alpha=0.25)
    trainer.alpha = 0.25
    expected, metrics = trl_loss(trainer, "simpo", 0.0, 0.0, size=3)
    trainer.alpha = 0.0
    assert output.loss.mean().item() == pytest.approx(expected, abs=1e-5)
    assert output.chosen_reward.mean().item() == pytest.approx(metrics["rewards/chosen"], abs=1e-4)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_simpo_with_nll(trainer: Any, row: int) -> None:
    """One pair at a time: TRL averages the NLL over the tokens of the batch, we over its prompts."""
    inputs = trainer.data_collator([trainer.train_dataset[row]])
    trainer.loss_type, trainer.cpo_alpha, trainer.label_smoothing = "simpo", 0.1, 0.0
    expected, _ = trainer.get_batch_loss_metrics(trainer.model, inputs)
    output = simpo_loss(labelled_pair(trainer.model, inputs), beta=BETA, gamma=GAMMA, nll_weight=0.1)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cpo(trainer: Any, smoothing: float) -> None:
    expected, metrics = trl_loss(trainer, "sigmoid", 1.0, smoothing, size=1)
    pair = labelled_pair(trainer.model, batch(trainer, 1))
    output = cpo_loss(pair, beta=BETA, nll_weight=1.0, label_smoothing=smoothing)
    assert output.loss.item() == pytest.approx(expected, abs=1e-5)
    assert output.chosen_reward.item() == pytest.approx(metrics["rewards/chosen"], abs=1e-4)


def test_cpo_of_a_batch_without_nll(trainer: Any) -> None:
    expected, _ = trl_loss(trainer, "sigmoid", 0.0, 0.0, size=3)
    output = cpo_loss(labelled_pair(trainer.model, batch(trainer)), beta=BETA, nll_weight=0.0)
    assert output.loss.mean().item() == pytest.approx(expected, abs=1e-5)
