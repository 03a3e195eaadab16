"""Our ORPO equals TRL's ORPOTrainer on the same model and pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from losses import orpo_loss
from tests.losses.trl_oracle import batch, build, labelled_pair


def test_orpo(tmp_path: Path) -> None:
    """TRL's NLL covers the prompt too and is logged apart: with it exchanged, the losses agree."""
    trainer = build(ORPOTrainer, ORPOConfig, tmp_path, beta=0.1)
    inputs = batch(trainer)
    expected, metrics = trainer.get_batch_loss_metrics(trainer.model, inputs)
    pair = labelled_pair(trainer.model, inputs)
    output = orpo_loss(pair, beta=0.1)
    chosen_nll = (-pair.chosen / pair.chosen_length).mean().item()
    assert output.loss.mean().item() - chosen_nll == pytest.approx(
        expected.item() - metrics["nll_loss"], abs=1e-5
    )
    assert output.chosen_reward.mean().item() == pytest.approx(metrics["rewards/chosen"], abs=1e-5)
    assert output.rejected_reward.mean().item() == pytest.approx(metrics["rewards/rejected"], abs=1e-5)
