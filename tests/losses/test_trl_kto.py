"""Our losses equal TRL's KTOTrainer on the same model, rows, mismatched answers and settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import KTOConfig, KTOTrainer

from losses import PairLogps, apo_zero_unpaired_loss, kto_loss
from tests.losses.cases import labelled
from tests.losses.trl_oracle import PAIRS, pair, token_sums
from tests.tiny import tiny_model, tiny_tokenizer

BETA, GOOD, BAD = 0.3, 1.2, 0.7
ROWS = [
    {"prompt": PAIRS[0]["prompt"], "completion": PAIRS[0]["chosen"], "label": True},
    {"prompt": PAIRS[1]["prompt"], "completion": PAIRS[1]["rejected"], "label": False},
    {"prompt": PAIRS[2]["prompt"], "completion": PAIRS[2]["rejected"], "label": False},
]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    args = KTOConfig(
        output_dir=str(tmp_path_factory.mktemp("kto")),
        per_device_train_batch_size=len(ROWS),
        report_to=[],
        use_cpu=True,
        bf16=False,
        max_length=64,
        disable_tqdm=True,
        beta=BETA,
        desirable_weight=GOOD,
        undesirable_weight=BAD,
    )
    return KTOTrainer(
        model=tiny_model(seed=0),
        ref_model=tiny_model(seed=1),
        args=args,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_tokenizer(),
    )


def inputs_of(trainer: Any) -> dict[str, Any]:
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(ROWS))])


def ours(trainer: Any, inputs: dict[str, Any]) -> tuple[PairLogps, PairLogps]:
    """Policy and reference log-probs: each row's own answer, and behind it TRL's mismatched one."""
    found = []
    for model in (trainer.model, trainer.ref_model):
        sides = [
            token_sums(
                model,
                inputs[f"{name}input_ids"],
                inputs[f"{name}attention_mask"],
                inputs[f"{name}completion_mask"],
            )
            for name in ("", "KL_")
        ]
        found.append(pair(*sides))
    labels = [[int(label), -1] for label in torch.as_tensor(inputs["label"]).tolist()]
    return labelled(found[0], labels), found[1]


def expected(trainer: Any, inputs: dict[str, Any]) -> Tensor:
    return trainer.compute_loss(trainer.model, dict(inputs))


@pytest.mark.parametrize("sign", [1, -1])
def test_kto(trainer: Any, sign: int) -> None:
    """With a positive estimate of the KL, and, policy and reference exchanged, with one that counts as 0."""
    for model, seed in ((trainer.model, 0), (trainer.ref_model, 1)):
        model.load_state_dict(tiny_model(seed=seed if sign > 0 else 1 - seed).state_dict())
    trainer.loss_type, trainer.calculate_KL = "kto", True
    inputs = inputs_of(trainer)
    policy, reference = ours(trainer, inputs)
    output = kto_loss(policy, reference, beta=BETA, desirable_weight=GOOD, undesirable_weight=BAD)
    trainer._metrics["eval"].clear(), trainer._metrics["train"].clear()
    assert output.loss.mean().item() == pytest.approx(expected(trainer, inputs).item(), abs=1e-5)
    logged = {name: values[-1] for mode in trainer._metrics.values() for name, values in mode.items()}
    kl = (policy.rejected - reference.rejected).mean().clamp(min=0).item()
    assert kl == pytest.approx(logged["kl"], abs=1e-5)
    good = torch.as_tensor(inputs["label"]).bool()
    for name, mask in (("chosen", good), ("rejected", ~good)):
        reward = output.chosen_reward[mask].mean().item()
        assert reward == pytest.approx(logged[f"rewards/{name}"], abs=1e-5)


def test_apo_zero_unpaired(trainer: Any) -> None:
    inputs = inputs_of(trainer)
    trainer.loss_type = "apo_zero_unpaired"
    trainer.desirable_weight = trainer.undesirable_weight = 1.0
    output = apo_zero_unpaired_loss(*ours(trainer, inputs), beta=BETA)
    assert output.loss.mean().item() == pytest.approx(expected(trainer, inputs).item(), abs=1e-5)
    trainer.desirable_weight, trainer.undesirable_weight = GOOD, BAD


def test_gradient_of_kto(trainer: Any) -> None:
    """Of a weight, to 1e-4 relative: nothing goes back through the KL."""
    trainer.loss_type = "kto"
    inputs, weight = inputs_of(trainer), trainer.model.lm_head.weight
    (wanted,) = torch.autograd.grad(expected(trainer, inputs), weight)
    policy, reference = ours(trainer, inputs)
    ids, mask = inputs["input_ids"], inputs["completion_mask"][:, 1:]
    logits = trainer.model(input_ids=ids, attention_mask=inputs["attention_mask"]).logits
    logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    live = replace(policy, chosen=(logps * mask).sum(1))
    output = kto_loss(live, reference, beta=BETA, desirable_weight=GOOD, undesirable_weight=BAD)
    (found,) = torch.autograd.grad(output.loss.mean(), weight)
    assert ((found - wanted).norm() / wanted.norm()).item() < 1e-4
