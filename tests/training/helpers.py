"""A `PreferenceTrainer` of a tiny model on random rows, and two methods for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments

from align.longseq import ATTENTION, pack
from align.training.method_settings import Needs
from align.training.methods import Method
from align.training.trainer import PreferenceTrainer
from losses import dpo_loss, logo_loss
from tests.longseq.plain import make_example
from tests.tiny import tiny_model

LOGO = Method(
    name="logo",
    loss=partial(logo_loss, beta=2.5, gamma=0.25, sft_weight=0.1),
    needs=Needs(reference="none", policy_short=False, nll_scope="none"),
)
DPO = Method(
    name="dpo",
    loss=partial(dpo_loss, beta=0.1),
    needs=Needs(reference="same", policy_short=False, nll_scope="none"),
)


class Rows(Dataset):
    """Random rows of unlike sizes."""

    def __init__(self, count: int, seed: int = 0, rejected: int = 2) -> None:
        rng = np.random.default_rng(seed)
        self.examples = [
            make_example(rng, prompt=int(rng.integers(4, 24)), answers=rng.integers(1, 9, 1 + rejected))
            for _ in range(count)
        ]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int):
        return self.examples[index]


def make_trainer(
    folder: Path,
    *,
    method=LOGO,
    reference=None,
    tokens_per_row=None,
    rows=8,
    kind=PreferenceTrainer,
    parallel=None,
    model=None,
    attention="sdpa",
    collator=None,
    **arguments,
):
    if model is None:
        model = tiny_model(initializer_range=0.1)
        model.set_attn_implementation(ATTENTION)
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return kind(
        model,
        TrainingArguments(**(settings | arguments)),
        method=method,
        parallel=parallel,
        reference=reference,
        attention=attention,
        train_dataset=Rows(rows),
        eval_dataset=Rows(5, seed=1),
        data_collator=collator or (lambda rows: {"batch": pack(rows, tokens_per_row=tokens_per_row)}),
    )


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
