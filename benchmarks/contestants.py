"""The implementations that are compared. Each is a Trainer whose `training_step` is the step that is timed.

They start from the same weights: the policy is the model with a little seeded noise on what trains, so that
policy and reference differ and equal losses prove something.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from rows import Row
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer

from align.adapters.adapter import add_adapter
from align.adapters.lora import Lora
from align.data.examples import Answer, TokenizedExample
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.models.loading import load_causal_lm, load_tokenizer
from align.models.settings import ModelSettings
from align.reference.sources import AdapterOff, Frozen, Reference
from align.training.methods import Method, named_method
from align.training.trainer import PreferenceTrainer
from losses import PairLogps

# What trains → LoRA's rank; 0 is everything.
PARAMETERS = {"full": 0, "lora": 16}
NOISE = 0.02


@dataclass(frozen=True)
class Contestant:
    """A trainer, its inputs for a row, and the token sequences that are in them (each prompt + answer)."""

    trainer: Trainer
    policy: nn.Module
    inputs: Callable[[Row], dict[str, Any]]
    sequences: Callable[[dict[str, Any]], list[list[int]]]
    frozen: nn.Module | None = None

    def weights(self) -> Iterator[Tensor]:
        """Of the policy and of a reference model of its own."""
        yield from self.policy.parameters()
        if self.frozen is not None:
            yield from self.frozen.parameters()


@dataclass(frozen=True)
class Setting:
    """What is the same for every contestant of a comparison."""

    suite: str  # method: dpo or logo
    parameters: str  # key of PARAMETERS
    model: str  # model.path

    def load(self, attention: str) -> PreTrainedModel:
        """The starting model, fp32."""
        return load_causal_lm(ModelSettings(path=self.model, dtype="float32"), attention=attention)

    def lora(self) -> Lora | None:
        """The adapter that trains; None where everything does."""
        rank = PARAMETERS[self.parameters]
        return Lora(r=rank, alpha=rank) if rank else None

    def policy(self, attention: str) -> Any:
        """The starting model, with an adapter where that trains."""
        model, lora = self.load(attention), self.lora()
        return model if lora is None else add_adapter(model, lora)

    def method(self) -> Method:
        """As `method=dpo` or `method=logo` configure it."""
        return named_method(self.suite)


def disturb(policy: nn.Module) -> None:
    """Moves the policy away from the starting model, the same way in every process."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if not weight.requires_grad:
                continue
            noise = NOISE * torch.randn(weight.shape)
            if "lora_" in name:  # whatever an adapter was initialised with
                weight.copy_(noise)
            else:
                weight.add_(noise * weight.std())


def arguments(kind: Callable[..., Any] = TrainingArguments, **settings: Any) -> Any:
    """Arguments on the CPU in fp32; the folder stays empty, since nothing is saved."""
    return kind(
        output_dir=tempfile.mkdtemp(prefix="bench-"),
        per_device_train_batch_size=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
        **settings,
    )


def ours(setting: Setting, *, checkpointing: str) -> Contestant:
    """This toolkit's trainer with its defaults; `checkpointing` as `memory.checkpointing`."""
    policy = setting.policy(ATTENTION)
    disturb(policy)
    apply_checkpointing(policy, checkpointing)
    method = setting.method()
    reference: Reference | None = None
    frozen: nn.Module | None = None
    if method.needs.reference != "none":
        if setting.lora() is not None:
            reference = AdapterOff(policy, pair_logps)
        else:
            reference = Frozen(lambda: setting.load(ATTENTION).eval().requires_grad_(False), pair_logps)
            frozen = reference.model
    trainer = PreferenceTrainer(
        policy,
        arguments(),
        method=method,
        reference=reference,
        data_collator=lambda examples: {"batch": pack(examples)},
    )
    return Contestant(trainer, policy, partial(_shared_inputs, trainer), _shared_sequences, frozen)


def shared_example(row: Row) -> TokenizedExample:
    """The row as the shared-prefix forward packs it."""
    return TokenizedExample(
        source="benchmark",
        prompt_ids=np.array(row.prompt),
        position_ids=np.arange(len(row.prompt)),
        answers=tuple(Answer(np.array(ids), np.ones(len(ids), dtype=bool)) for ids in row.answers),
    )


def _shared_inputs(trainer: PreferenceTrainer, row: Row) -> dict[str, Any]:
    collate: Any = trainer.data_collator  # takes each row with whether it is real, a placeholder otherwise
    return collate([(shared_example(row), True)])


def _shared_sequences(inputs: dict[str, Any]) -> list[list[int]]:
    found = []
    for row in inputs["batch"].rows:
        ids = row.input_ids[0].tolist()
        for packed in row.layout.prompts:
            found += [ids[slice(*packed.prompt)] + ids[slice(*answer)] for answer in packed.answers]
    return found


def trl(setting: Setting) -> Contestant:
    """TRL's DPOTrainer with its defaults (gradient checkpointing, fused head); only its length limit is lifted."""
    lora = setting.lora()
    trainer = DPOTrainer(
        model=setting.load("sdpa"),
        args=arguments(DPOConfig, max_length=None),
        train_dataset=Dataset.from_list([{"prompt": "unused", "chosen": " yes", "rejected": " no"}]),
        processing_class=load_tokenizer(setting.model),
        # A ready PeftModel would be its own reference; a configuration makes the reference the model without it.
        peft_config=None if lora is None else _peft_config(lora),
    )
    policy: Any = trainer.model
    disturb(policy)
    _start(trainer, policy)
    return Contestant(trainer, policy, partial(_trl_inputs, trainer), _masked_sequences, trainer.ref_model)


def _peft_config(lora: Lora) -> LoraConfig:
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )


def _start(trainer: Trainer, policy: nn.Module) -> None:
    """What `Trainer.train` does before its first step."""
    if not trainer.args.gradient_checkpointing:
        raise ValueError(f"{type(trainer).__name__} is to be measured with gradient checkpointing")
    enable: Callable[..., None] = policy.activation_checkpointing_enable  # type: ignore[assignment]
    enable(activation_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs)
    trainer.current_gradient_accumulation_steps = 1


def _trl_inputs(trainer: DPOTrainer, row: Row) -> dict[str, Any]:
    chosen, rejected = row.answers
    example = {"prompt_ids": row.prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    return trainer.data_collator([example])


def _masked_sequences(inputs: dict[str, Any]) -> list[list[int]]:
    rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in rows]


class PaddedTrainer(Trainer):
    """The ordinary way: one right-padded row an answer, full logits, log-softmax, gather."""

    def __init__(self, *args: Any, method: Method, **keywords: Any) -> None:
        self.method = method
        super().__init__(*args, **keywords)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **keywords: Any
    ) -> Tensor:
        """The method's loss on one prompt; the first row holds the chosen answer."""
        ids, scored = inputs["input_ids"], inputs["scored"][:, 1:]
        logits = model(input_ids=ids, attention_mask=inputs["attention_mask"], use_cache=False).logits
        logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        sums, lengths = (logps * scored).sum(1)[None], scored.sum(1)[None]
        policy = PairLogps(sums[:, 0], sums[:, 1:], lengths[:, 0], lengths[:, 1:])
        return self.method.loss(policy, None).loss.mean()


def padded(setting: Setting) -> Contestant:
    """Padded rows through transformers' own forward and sdpa attention, gradient checkpointing on."""
    policy = setting.policy("sdpa")
    disturb(policy)
    trainer = PaddedTrainer(policy, arguments(gradient_checkpointing=True), method=setting.method())
    _start(trainer, policy)
    return Contestant(trainer, policy, _padded_inputs, _masked_sequences)


def _padded_inputs(row: Row) -> dict[str, Any]:
    sequences = [torch.tensor(ids) for ids in row.sequences()]
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    mask = pad([torch.ones_like(ids) for ids in sequences])
    scored = mask.clone()
    scored[:, : len(row.prompt)] = 0
    return {"input_ids": pad(sequences), "attention_mask": mask, "scored": scored}


CONTESTANTS: dict[str, Callable[[Setting], Contestant]] = {
    "ours": partial(ours, checkpointing="keep_attention"),
    "ours_full": partial(ours, checkpointing="full"),
    "trl": trl,
    "padded": padded,
}
