"""Our variants of DPO equal TRL's DPOTrainer and CPOTrainer on the same model, pairs and settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

import hydra_conf
from align.training.methods import load_method
from losses import (
    LossOutput,
    apo_down_loss,
    apo_zero_loss,
    discopop_loss,
    dpo_loss,
    dpo_norm_loss,
    exo_pair_loss,
    f_dpo_loss,
    hinge_dpo_loss,
    mixture_loss,
    nca_pair_loss,
    sft_loss,
    slic_loss,
    sppo_hard_loss,
)
from losses.divergences import alpha, forward_kl, jensen_shannon, reverse_kl
from tests.losses.trl_oracle import PAIRS, batch, build, labelled_pair, reference_pair
from tests.tiny import tiny_model

BETA = 0.3


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("dpo")
    return build(DPOTrainer, DPOConfig, folder, beta=BETA, trainer_keywords={"ref_model": tiny_model(seed=1)})


def trl_loss(trainer: Any, name: str, **settings: Any) -> float:
    trainer.loss_types, trainer.loss_weights = [name], [1.0]
    defaults = {"label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5}
    for key, value in (defaults | settings).items():
        setattr(trainer, key, value)
    return trainer.compute_loss(trainer.model, batch(trainer)).item()


SAME = [
    ("sigmoid_norm", {}, dpo_norm_loss),
    ("apo_zero", {}, apo_zero_loss),
    ("apo_down", {}, apo_down_loss),
    ("nca_pair", {}, nca_pair_loss),
    ("sppo_hard", {}, sppo_hard_loss),
    ("hinge", {}, hinge_dpo_loss),
    ("exo_pair", {"label_smoothing": 0.05}, partial(exo_pair_loss, label_smoothing=0.05)),
    ("discopop", {}, partial(discopop_loss, tau=0.05)),
]


@pytest.mark.parametrize(("name", "settings", "loss"), SAME, ids=[name for name, *_ in SAME])
def test_the_same_loss(trainer: Any, name: str, settings: dict, loss: Callable[..., LossOutput]) -> None:
    output = loss(*reference_pair(trainer), beta=BETA)
    assert output.loss.mean().item() == pytest.approx(trl_loss(trainer, name, **settings), rel=1e-5, abs=1e-5)


DIVERGENCES = [
    ("reverse_kl", 0.5, reverse_kl),
    ("forward_kl", 0.5, forward_kl),
    ("js_divergence", 0.5, jensen_shannon),
    ("alpha_divergence", 0.5, partial(alpha, alpha=0.5)),
    ("alpha_divergence", 0.2, partial(alpha, alpha=0.8)),
]


@pytest.mark.parametrize(("name", "coefficient", "divergence"), DIVERGENCES)
def test_the_same_divergence(trainer: Any, name: str, coefficient: float, divergence: Callable) -> None:
    """TRL's coefficient of the α-divergence is 1 − α."""
    settings = {"f_divergence_type": name, "f_alpha_divergence_coef": coefficient}
    expected = trl_loss(trainer, "sigmoid", **settings)
    found = f_dpo_loss(*reference_pair(trainer), beta=BETA, divergence=divergence)
    assert found.loss.mean().item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_mixture(trainer: Any) -> None:
    """TRL's list of losses with weights; its SFT is a mean over the batch's tokens, so one pair at a time."""
    trl_loss(trainer, "sigmoid")
    trainer.loss_types, trainer.loss_weights = ["sigmoid", "sppo_hard", "sft"], [0.8, 0.2, 1.0]
    losses = {
        "dpo": partial(dpo_loss, beta=BETA),
        "sppo": partial(sppo_hard_loss, beta=BETA),
        "sft": sft_loss,
    }
    expected = trainer.compute_loss(trainer.model, batch(trainer, 1)).item()
    weights = {"dpo": 0.8, "sppo": 0.2, "sft": 1.0}
    found = mixture_loss(*reference_pair(trainer, 1), losses=losses, weights=weights)
    assert found.loss.item() == pytest.approx(expected, rel=1e-5)


def test_mpo(trainer: Any) -> None:
    """TRL's MPO: its BCO has no shift, ours none before the first step."""
    trl_loss(trainer, "sigmoid")
    trainer.loss_types, trainer.loss_weights = ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]
    expected = trainer.compute_loss(trainer.model, batch(trainer, 1)).item()
    config = OmegaConf.load(Path(hydra_conf.__file__).parent / "method" / "mpo.yaml")
    config.loss.losses.dpo.beta = BETA
    found = load_method(config).loss(*reference_pair(trainer, 1))
    assert found.loss.item() == pytest.approx(expected, rel=1e-5)


def test_slic_is_the_hinge_of_cpo(tmp_path_factory: pytest.TempPathFactory) -> None:
    """relu(1 − β·h) is β·relu(1/β − h): TRL's hinge of β = 0.1 is 0.1 times ours of δ = 10."""
    folder = tmp_path_factory.mktemp("cpo")
    trainer = build(CPOTrainer, CPOConfig, folder, beta=0.1, loss_type="hinge", cpo_alpha=0.0)
    inputs = batch(trainer, len(PAIRS))
    expected, _ = trainer.get_batch_loss_metrics(trainer.model, inputs)
    output = slic_loss(labelled_pair(trainer.model, inputs), margin=10.0, nll_weight=0.0)
    assert 0.1 * output.loss.mean().item() == pytest.approx(expected.item(), rel=1e-5)
