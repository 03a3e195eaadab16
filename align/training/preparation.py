"""What `PreferenceTrainer` takes from a notebook, made into what it computes with: a model, rows, a reference."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, TrainingArguments

from align.core.config import check_choice
from align.core.errors import AlignWarning, UserError
from align.data.dataset import PreferenceData, load_preference_data
from align.data.length_words import rows_in_window_words, window_words
from align.data.notices import notices
from align.data.positions_of_model import fit_positions
from align.data.settings import DataSettings, PositionSettings
from align.data.unread import unused_short
from align.data.vocabulary import vocabulary_of
from align.longseq.attention import is_ours
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.parallel import SequenceParallel
from align.longseq.probe import check_architecture, check_model_in_memory
from align.longseq.settings import (
    ATTENTION_CHOICES,
    MemorySettings,
    ParallelSettings,
    attention_name,
    check_library_settings,
)
from align.longseq.support import check_config, check_readable
from align.longseq.tile_probe import check_tiles_of
from align.models.loading import load_causal_lm, load_config, load_tokenizer, native_window, window_of
from align.models.precision import training_dtype, warn_of_low_weights
from align.models.query_scale import scale_of
from align.models.settings import LIBRARY, OF_LIBRARY, ModelSettings
from align.models.soft_prompt import soft_ids
from align.models.structure import find_causal_lm, library_attention, set_reading, takes_masks
from align.models.text_part import freeze_other_parts, set_attention
from align.reference.sources import Reference, keeps_float32_copy
from align.runs.api import store
from align.runs.continuation import prompts_of_step
from align.training.collate import Collator
from align.training.method_settings import check_step
from align.training.methods import Method, named_method
from align.training.row_costs import attention_notice
from align.training.sharded_experts import prepare_sharded_experts
from align.training.soft_prompts import less_soft_prompt
from align.training.starting_reference import make_reference


@dataclass(frozen=True)
class Prepared:
    """What the trainer computes with; `train` and `held_out` are rows that `collator` takes."""

    model: nn.Module
    method: Method
    tokenizer: PreTrainedTokenizerBase | None
    train: Any
    held_out: Any
    collator: Any
    reference: Reference | None


def prepare(
    model: nn.Module | str,
    arguments: TrainingArguments,
    method: Method | str,
    *,
    rows: tuple[Any, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    collator: Any,
    reference: Reference | None,
    parallel: SequenceParallel | None,
    memory: MemorySettings,
    attention: str,
    logits_chunk: int | None,
    max_length: int | None,
) -> Prepared:
    """Everything that is not given in the form that the trainer computes with; arguments as the trainer's.

    Raises:
        UserError: a model or a row that cannot be used.
    """
    if isinstance(method, str):
        method = named_method(method)
    if not isinstance(method, Method):
        raise UserError(f"method is a {type(method).__name__}: give a name, or what align.method(…) makes.")
    degree = 1 if parallel is None else parallel.degree
    check_step(method.needs, prompts=prompts_of_step(arguments, degree))
    check_library_settings(attention, memory, ParallelSettings(degree=degree))
    if not torch.accelerator.is_available() or torch.backends.mps.is_available():
        arguments.dataloader_pin_memory = False  # pins nothing, and warns of it at every loader
    if isinstance(model, str) and tokenizer is None:
        tokenizer = load_tokenizer(model)
    train, held_out = rows
    if collator is None:  # with one of the caller's, rows are taken as they are
        config = read_config(model)
        train, held_out = (
            prepare_rows(
                each,
                tokenizer,
                method=method,
                config=config,
                max_length=max_length,
                what=what,
                attention=attention,
            )
            for each, what in zip(rows, ("train_dataset", "eval_dataset"), strict=True)
        )
    policy = prepare_model(model, memory, attention)  # after the rows: of a wrong one no weights need be read
    collator = collator or Collator.of(method.needs, soft=soft_ids(policy))
    prepare_sharded_experts(policy, arguments)
    if arguments.process_index == 0 and not keeps_float32_copy(arguments):
        warn_of_low_weights(policy)
    if reference is None:
        chunk = logits_chunk or memory.logits_chunk
        reference = make_reference(method.needs, policy, arguments, parallel=parallel, logits_chunk=chunk)
    return Prepared(policy, method, tokenizer, train, held_out, collator, reference)


def read_config(model: nn.Module | str) -> PreTrainedConfig:
    """The configuration of a model, or of the one that a path names, without its weights."""
    if isinstance(model, str):
        return load_config(ModelSettings(path=model))
    return find_causal_lm(model).config


def prepare_model(model: nn.Module | str, memory: MemorySettings, attention: str = "auto") -> nn.Module:
    """A model that reads rows as `attention` says; one that has the shared prefix's already is returned as it is.

    Args:
        model: a causal language model of transformers, inside PEFT or not; or a folder, a Hub id or `embedded`.
        memory: what is kept for the backward pass.
        attention: as `model.attention`.

    Raises:
        UserError: a model that cannot read its rows so.
    """
    check_choice("model.attention", attention, ATTENTION_CHOICES)
    if isinstance(model, str):
        settings = training_dtype(ModelSettings(path=model, attention=attention))
        check_architecture(settings)
        model = load_causal_lm(settings, attention=attention_name(attention))
    else:
        check_model_in_memory(model, attention)
        if attention not in OF_LIBRARY and is_ours(find_causal_lm(model)):
            return model
    check_readable(model, attention)
    lm, name = find_causal_lm(model), attention_name(attention)
    if name is None and (is_ours(lm) or not (attention == LIBRARY or takes_masks(lm)) or scale_of(lm.config)):
        name = library_attention(lm)
    if name is not None:
        set_attention(lm, name)
    set_reading(lm, attention)
    freeze_other_parts(lm)
    if memory.mlp_chunk is not None and attention not in OF_LIBRARY:
        check_tiles_of(type(lm), lm.config)
    apply_checkpointing(model, memory.checkpointing, **memory.levers())
    return model


def prepare_rows(
    rows: Dataset | Iterable[Mapping[str, Any]] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    method: Method,
    config: PreTrainedConfig,
    max_length: int | None,
    what: str = "train_dataset",
    attention: str = "auto",
) -> Dataset | None:
    """Rows as the collator takes them; those that are tokenised already, and None, are returned as they are.

    Args:
        rows: dictionaries or a `datasets.Dataset` in any layout of `data.path` (`prompt`, `chosen`, `rejected`, …).
        tokenizer: with a chat template where rows are conversations.
        method: whether it needs rejected answers and short contexts.
        config: the model's, for its window.
        max_length: tokens to which contexts are cut; None is the model's window.
        what: their name, for messages.
        attention: as `model.attention`.

    Raises:
        UserError: no tokenizer, a row that cannot be used, or a model that is not computed here.
    """
    if rows is None:
        return None
    if isinstance(rows, Dataset) and "prompt_ids" in rows.column_names:
        return rows
    if tokenizer is None:
        raise UserError("rows have to be tokenised: give the tokenizer, processing_class=….")
    window = window_of(config) if max_length is None else None
    settings = DataSettings(path=str(store(rows, what=what)), eval_size=0, max_length=max_length or window)
    with window_words(window):
        data = read_rows_for(
            method,
            settings,
            tokenizer,
            config=config,
            positions=PositionSettings(),
            seed=0,
            attention=attention,
        )
    unused = [] if method.needs.short else unused_short(data)
    said = [*notices(data, window=window, limit=f"max_length={max_length}"), *unused]
    for sentence in [*said, *attention_notice(data, attention)]:
        warnings.warn(f"{what}: {sentence}", AlignWarning, stacklevel=2)
    return data.train


def read_rows_of_model(
    method: Method,
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: ModelSettings,
    positions: PositionSettings,
    seed: int,
) -> PreferenceData:
    """`read_rows_for` as commands read: where `data.max_length` is not set, contexts are cut to the model's window."""
    window = native_window(model) if settings.max_length is None else None
    settings = replace(settings, max_length=settings.max_length or window)
    settings, positions = less_soft_prompt(settings, fit_positions(positions, model), model.adapter)
    limit, config = None if window is None else settings.max_length, load_config(model)
    with window_words(limit):
        data = read_rows_for(
            method,
            settings,
            tokenizer,
            config=config,
            positions=positions,
            seed=seed,
            attention=model.attention,
        )
    return replace(data, dropped=rows_in_window_words(data.dropped, limit))


def read_rows_for(
    method: Method,
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: PreTrainedConfig,
    positions: PositionSettings,
    seed: int,
    attention: str = "auto",
) -> PreferenceData:
    """Tokenised rows with all that a method asks for.

    Args:
        method: whether it needs rejected answers and short contexts.
        settings: which rows, and the tokens to which they are cut.
        tokenizer: of the model.
        config: the model's.
        positions: how positions are synthesised, fitted to the model.
        seed: of the split and the positions.
        attention: as `model.attention`.

    Raises:
        UserError: a row that cannot be used, or a model that is not computed here.
    """
    check_config(config)
    return load_preference_data(
        settings,
        tokenizer,
        positions=positions,
        seed=seed,
        require_rejected=method.requires_rejected(),
        require_short=method.needs.short,
        vocabulary=vocabulary_of(config),
        columns=method.needs.columns,
        weigher=method.token_weights,
        unrelated=method.needs.answers == "unrelated",
    )
