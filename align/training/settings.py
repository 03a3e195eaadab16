"""A training run's settings, typed and checked against each other before any data or weights are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import TrainingArguments

from align.core.config import check_arguments, check_choice, typed
from align.core.errors import UserError
from align.data.settings import DataSettings, PositionSettings
from align.evaluation.in_training import build_suites, check_suites
from align.evaluation.suite import Suite
from align.longseq.flash import check_flash
from align.longseq.probe import check_attention_reached
from align.longseq.settings import (
    ATTENTIONS,
    FLASH_MODULES,
    MemorySettings,
    ParallelSettings,
)
from align.longseq.support import check_config
from align.models.checks import check_model
from align.models.loading import causal_lm_class, load_config, resolve_dtype
from align.models.settings import ModelSettings
from align.reference.cache import check_folder
from align.reference.settings import ReferenceSettings, check_sharding, reference_model, resolve_source
from align.training.methods import Method, load_method

# Keywords of TrainingArguments that this toolkit sets itself → the key to use instead.
RESERVED = {
    "output_dir": "output",
    "seed": "seed",
    "data_seed": "seed",
    "resume_from_checkpoint": "resume",
    "gradient_checkpointing": "memory.checkpointing",
    "gradient_checkpointing_kwargs": "memory.checkpointing",
    "remove_unused_columns": "the default, which keeps the rows whole",
    "average_tokens_across_devices": "the default: the loss is the mean over the prompts of the step",
    "label_smoothing_factor": "method.loss.label_smoothing",
    # A configuration is saved and shown: no secret may stand in it.
    "hub_token": "the environment variable HF_TOKEN, or `hf auth login`,",
    "push_to_hub_token": "the environment variable HF_TOKEN, or `hf auth login`,",
}


@dataclass(frozen=True)
class GeneralSettings:
    """Top-level keys; see hydra_conf/train.yaml."""

    output: str = "outputs/train"
    seed: int = 42
    resume: str = "auto"
    objective: str = "eval_rewards/accuracies"
    allow_targets: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A training run whose settings have all been checked; no weights are loaded yet."""

    output: Path
    seed: int
    resume: str
    objective: str
    method: Method
    model: ModelSettings
    data: DataSettings
    positions: PositionSettings
    memory: MemorySettings
    parallel: ParallelSettings
    reference: ReferenceSettings
    reference_source: str
    arguments: TrainingArguments
    suites: dict[str, Suite]


def check(config: DictConfig) -> Run:
    """Every setting as its type, contradictions refused; reads no data and no weights."""
    general = typed(GeneralSettings, config, "")
    method = load_method(config.method, allow_targets=general.allow_targets)
    model = typed(ModelSettings, config, "model")
    memory = typed(MemorySettings, config, "memory")
    reference = typed(ReferenceSettings, config, "reference")
    arguments = training_arguments(config)
    memory.check(accelerator=arguments.device.type != "cpu")
    check_model(model)
    check_attention(model, arguments)
    suites = build_suites(config)
    check_suites(suites, arguments)
    if reference.fill_only and model.quantization != "none":
        raise UserError(
            "reference.fill_only has no adapter, which model.quantization needs: fill the cache while training."
        )
    source = resolve_source(
        reference, needs=method.needs.reference, lora=model.lora.r > 0, method=method.name
    )
    check_sharding(reference.sharding, source=source, model=model)
    check_architecture(model)
    if source != "none":
        check_reference(reference, model)
    return Run(
        output=Path(general.output),
        seed=general.seed,
        resume=general.resume,
        objective=general.objective,
        method=method,
        model=model,
        data=typed(DataSettings, config, "data"),
        positions=typed(PositionSettings, config, "positions"),
        memory=memory,
        parallel=typed(ParallelSettings, config, "parallel"),
        reference=reference,
        reference_source=source,
        arguments=arguments,
        suites=suites,
    )


def check_attention(model: ModelSettings, arguments: TrainingArguments) -> None:
    """Refuses `model.attention` where it is unknown, or where its kernels cannot run."""
    check_choice("model.attention", model.attention, ATTENTIONS)
    if model.attention in FLASH_MODULES:
        lowered = arguments.bf16 or arguments.fp16
        check_flash(model.attention, dtype=torch.bfloat16 if lowered else resolve_dtype(model.dtype))


def check_architecture(model: ModelSettings) -> None:
    """Refuses an architecture that the shared-prefix forward does not compute, before its weights load."""
    config = load_config(model)
    check_config(config)
    kind = causal_lm_class(model, config)
    if kind is not None:
        check_attention_reached(kind, config)


def check_reference(reference: ReferenceSettings, model: ModelSettings) -> None:
    """The reference's architecture, before its weights load."""
    settings = reference_model(reference, model)
    if (settings.path, settings.revision) == (model.path, model.revision):
        check_config(load_config(settings))
    else:
        check_architecture(settings)
    if reference.cache is not None:
        check_folder(Path(reference.cache))


def training_arguments(config: DictConfig) -> TrainingArguments:
    """The group `trainer` as TrainingArguments, with what this toolkit sets itself."""
    values: dict[str, Any] = OmegaConf.to_container(config.trainer, resolve=True)  # type: ignore[assignment]
    check_arguments(values, TrainingArguments, group="trainer", reserved=RESERVED)
    if not torch.accelerator.is_available():
        # Untold, accelerate would make every process of a launch on CPU believe that it is alone.
        values["use_cpu"] = True
    try:
        return TrainingArguments(
            output_dir=str(config.output),
            seed=config.seed,
            remove_unused_columns=False,
            **values,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
