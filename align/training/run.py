"""A training run whose settings have all been checked, also against torch, the model's configuration and the launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedConfig, TrainingArguments, get_scheduler

from align.core.errors import UserError, first_line
from align.core.wrong_types import shown
from align.data.positions_of_model import fit_positions
from align.distributed.build_locks import warn_of_left_locks
from align.distributed.wrappers import launched_wrapper
from align.longseq.flash_fit import check_flash
from align.longseq.probe import check_architecture
from align.longseq.settings import OF_SOME_GPUS
from align.longseq.support import check_config, check_degree
from align.longseq.tile_probe import check_tiles
from align.models.kernels import check_kernels, kernels_on
from align.models.loading import check_reference_tokens, load_config, resolve_dtype
from align.models.paths import check_weights
from align.models.precision import autocasts, training_dtype
from align.models.settings import ModelSettings
from align.models.text_part import of_layers, text_config
from align.reference.cache import check_folder
from align.reference.settings import ReferenceSettings, check_follow_wrapper, reference_model
from align.runs.continuation import prompts_of_step
from align.training.method_settings import Needs, check_step
from align.training.methods import Method, load_method, weighed
from align.training.settings import Settings, read_settings
from align.training.sharded_experts import check_sharded_experts


@dataclass(frozen=True)
class Run(Settings):
    """A training run; no weights are loaded yet."""

    method: Method
    arguments: TrainingArguments


def check(config: DictConfig) -> Run:
    """Every setting as its type, contradictions refused; reads no data and no weights."""
    settings = read_settings(config)
    method = load_method(config.method, allow_targets=settings.allow_targets)
    method = weighed(method, settings.token_weights)
    arguments = training_arguments(config, settings.model)
    check_step(method.needs, prompts=prompts_of_step(arguments, settings.parallel.degree))
    check_scheduler(arguments)
    model = training_dtype(settings.model)
    settings = replace(settings, model=replace(model, kernels=kernels_on(model, arguments.device)))
    if model.adapter is not None:
        model.adapter.check_options()
        model.adapter.check_launch(launched_wrapper(arguments), arguments)
    settings.memory.check(accelerator=arguments.device.type != "cpu")
    check_attention(settings.model, arguments)
    check_architecture(settings.model)
    check_tiles(settings.model, settings.memory)
    check_degree(load_config(settings.model), settings.parallel.degree)
    check_sharded_experts(settings.model, arguments)
    check_kernels(settings.model, load_config(settings.model))
    check_follow_wrapper(settings.reference, launched_wrapper(arguments))
    check_positions(settings, method.needs)
    if settings.reference_source != "none":
        check_reference(settings.reference, settings.model)
    check_weights(settings.model.path)
    return Run(**vars(settings), method=method, arguments=arguments)


def check_attention(model: ModelSettings, arguments: TrainingArguments) -> None:
    """Refuses `model.attention` where its kernels cannot run."""
    if model.attention in OF_SOME_GPUS:
        weights = resolve_dtype(model.dtype)
        lowered = torch.float16 if arguments.fp16 else torch.bfloat16 if arguments.bf16 else weights
        check_flash(model.attention, dtype=lowered, weights=weights, widths=head_widths(load_config(model)))


def check_scheduler(arguments: TrainingArguments) -> None:
    """Refuses settings that the learning rate's schedule does not take, by making one of ten steps.

    Raises:
        UserError: what the schedule says.
    """
    kind = getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
    settings: Any = arguments.lr_scheduler_kwargs or {}
    try:
        get_scheduler(
            kind,
            optimizer,
            num_warmup_steps=0,
            num_training_steps=10,
            scheduler_specific_kwargs=dict(settings),
        )
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise UserError(
            f"trainer.lr_scheduler_kwargs={shown(settings)} does not go with trainer.lr_scheduler_type={kind}: "
            f"{first_line(error)}."
        ) from error
    _check_floor(settings, arguments.learning_rate)


def _check_floor(settings: Mapping[str, Any], peak: float) -> None:
    """Refuses a learning rate that the schedule ends with where it is no floor of the schedule.

    Beside a peak of 1e-5 `min_lr` lies in 0 … 1e-5, and `min_lr_rate`, a share of the peak, in 0 … 1.
    """
    for name, most in (("min_lr", peak), ("min_lr_rate", 1), ("min_lr_ratio", 1)):
        value = settings.get(name)
        if isinstance(value, int | float) and not 0 <= value <= most:
            raise UserError(
                f"trainer.lr_scheduler_kwargs.{name}={value:g} is no floor of the learning rate: give a number from 0 "
                f"to {most:g}{'' if most == 1 else ', which is trainer.learning_rate'}."
            )


def head_widths(config: PreTrainedConfig) -> tuple[int, int] | None:
    """Numbers of a key and of a value in the widest of a model's heads; None where its configuration does not say."""
    named, heads = of_layers(config, "head_dim"), of_layers(config, "num_attention_heads")
    if not named and heads:
        named = [text_config(config).hidden_size // min(heads)]
    named += of_layers(config, "global_head_dim")
    latent = zip(of_layers(config, "qk_nope_head_dim"), of_layers(config, "qk_rope_head_dim"), strict=False)
    keys = [sum(both) for both in latent] or named
    values = of_layers(config, "v_head_dim") or keys
    if not keys or not all(isinstance(width, int) for width in (*keys, *values)):
        return None
    return max(*keys, *values), max(values)


def check_positions(settings: Settings, needs: Needs) -> None:
    """Refuses positions that the policy cannot read, or a reference that reads the same rows and cannot.

    Raises:
        UserError: see `Placement.fitted`.
    """
    fit_positions(settings.positions, settings.model)
    if settings.reference_source == "frozen" and needs.reference == "same":
        try:
            fit_positions(settings.positions, reference_model(settings.reference, settings.model))
        except UserError as error:
            raise UserError(f"The reference reads the policy's rows: {error}") from error


def check_reference(reference: ReferenceSettings, model: ModelSettings) -> None:
    """The reference's architecture, before its weights load."""
    settings = reference_model(reference, model)
    if (settings.path, settings.revision) == (model.path, model.revision):
        check_config(load_config(settings), attention=settings.attention)
    else:
        check_architecture(settings)
        check_kernels(settings, load_config(settings), key="reference.model")
        check_reference_tokens(settings, model)
    if reference.cache is not None:
        check_folder(Path(reference.cache))


def training_arguments(config: DictConfig, model: ModelSettings) -> TrainingArguments:
    """The group `trainer`, whose keys `read_settings` has checked, with what this toolkit sets itself.

    Args:
        config: the whole configuration.
        model: group `model`; where `dtype=auto` trains float32 weights on a GPU, products are bfloat16.
    """
    values: dict[str, Any] = OmegaConf.to_container(config.trainer, resolve=True)  # type: ignore[assignment]
    if values.get("bf16") is None:
        values["bf16"] = autocasts(model) and not values.get("fp16")
    if not torch.accelerator.is_available():
        # Untold, accelerate would make every process of a launch on CPU believe that it is alone.
        values["use_cpu"] = True
    warn_of_left_locks(asked=bool(values.get("deepspeed")))
    try:
        return TrainingArguments(
            output_dir=str(config.output),
            seed=config.seed,
            remove_unused_columns=False,
            **values,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
