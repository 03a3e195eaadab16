"""TRL's trainers on a tiny model, as oracles: their loss on a batch against ours on plain log-probs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from losses import PairLogps
from tests.tiny import tiny_model, tiny_tokenizer

PAIRS = [
    {"prompt": "w10 w11 w12", "chosen": " w20 w21", "rejected": " w30 w31 w32 w33"},
    {"prompt": "w13 w14", "chosen": " w22 w23 w24 w25 w26", "rejected": " w34"},
    {"prompt": "w15 w16 w17 w18 w19", "chosen": " w27 w28 w29", "rejected": " w35 w36 w37"},
]


def build(trainer: Any, config: Any, folder: Path, **settings: Any) -> Any:
    """A TRL trainer over `PAIRS` on a tiny Llama; extra keywords of the trainer under `trainer_keywords`."""
    keywords = settings.pop("trainer_keywords", {})
    args = config(
        output_dir=str(folder),
        per_device_train_batch_size=len(PAIRS),
        report_to=[],
        use_cpu=True,
        bf16=False,
        max_length=64,
        disable_tqdm=True,
        **settings,
    )
    return trainer(
        model=tiny_model(seed=0),
        args=args,
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tiny_tokenizer(),
        **keywords,
    )


def batch(trainer: Any, size: int = len(PAIRS)) -> dict[str, Any]:
    """The first `size` rows, tokenised and collated by TRL."""
    return trainer.data_collator([trainer.train_dataset[i] for i in range(size)])


def token_sums(
    model: Any, input_ids: Tensor, attention_mask: Tensor, scored: Tensor
) -> tuple[Tensor, Tensor]:
    """Summed log-probs `[rows]` of the tokens where `scored`, straight from the logits, and their number."""
    with torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    logps = logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None])[..., 0]
    mask = scored[:, 1:].bool()
    return (logps * mask).sum(1), mask.sum(1)


def pair(chosen: tuple[Tensor, Tensor], rejected: tuple[Tensor, Tensor]) -> PairLogps:
    """One chosen and one rejected answer a prompt."""
    return PairLogps(
        chosen=chosen[0],
        rejected=rejected[0][:, None],
        chosen_length=chosen[1],
        rejected_length=rejected[1][:, None],
    )


def reference_pair(trainer: Any, size: int = len(PAIRS)) -> tuple[PairLogps, PairLogps]:
    """Policy and reference log-probs of the first pairs of a DPOTrainer; its batch has the chosen rows first."""
    inputs = batch(trainer, size)
    found = []
    for model in (trainer.model, trainer.ref_model):
        sums, lengths = token_sums(
            model, inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]
        )
        found.append(pair((sums[:size], lengths[:size]), (sums[size:], lengths[size:])))
    return found[0], found[1]


def labelled_pair(model: Any, inputs: dict[str, Tensor]) -> PairLogps:
    """Log-probs of a batch of TRL's CPO and ORPO trainers (labels −100 on the prompt)."""
    sides = [
        token_sums(
            model,
            inputs[f"{side}_input_ids"],
            inputs[f"{side}_attention_mask"],
            inputs[f"{side}_labels"] != -100,
        )
        for side in ("chosen", "rejected")
    ]
    return pair(*sides)
