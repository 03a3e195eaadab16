"""The reference that a run's settings stand for, and its model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from align.longseq.parallel import SequenceParallel
from align.longseq.settings import attention_name
from align.longseq.support import check_readable
from align.models.identity import Identity
from align.models.loading import load_causal_lm
from align.models.precision import cast_parameters
from align.models.settings import ModelSettings
from align.reference.cache import open_cache
from align.reference.settings import ReferenceSettings, reference_model
from align.reference.shards import load_reference
from align.reference.sources import AdapterOff, Frozen, Reference, computing_precision, reference_forward


def build_reference(
    settings: ReferenceSettings,
    *,
    source: str,
    model: ModelSettings,
    policy: Any,
    arguments: TrainingArguments,
    logits_chunk: int,
    parallel: SequenceParallel | None,
) -> Reference | None:
    """The reference that `reference.source` stands for, behind its cache where there is one.

    Args:
        settings: group `reference`.
        source: `none`, `adapter_off` or `frozen`, see `resolve_source`.
        model: group `model`, the policy's.
        policy: the model that trains; with `reference.fill_only` the reference's own, see `frozen_model`.
        arguments: of the run: its precision and processes.
        logits_chunk: tokens whose vocabulary logits exist at once.
        parallel: this process's place in its sequence-parallel group; None without.
    """
    if source == "none":
        return None
    forward = reference_forward(arguments, parallel=parallel, logits_chunk=logits_chunk)
    live: AdapterOff | Frozen
    if settings.fill_only:
        live = Frozen(lambda: policy, forward)
    elif source == "adapter_off":
        live = AdapterOff(policy, forward)
    else:
        live = Frozen(partial(frozen_model, settings, model, arguments), forward)
    if settings.cache is None:
        return live
    folder = Path(settings.cache)
    with arguments.main_process_first(local=False, desc="hash of the reference's weights"):
        identity = Identity.of(
            reference_model(settings, model), precision=computing_precision(arguments), cache=folder
        )
    return open_cache(live, folder, identity, describe=arguments.process_index == 0)


def frozen_model(
    settings: ReferenceSettings, policy: ModelSettings, arguments: TrainingArguments
) -> PreTrainedModel:
    """The reference's model in evaluation mode, on the training device, whole or split.

    Args:
        settings: group `reference`.
        policy: group `model`.
        arguments: of the run.
    """
    own = reference_model(settings, policy)
    weights = computing_precision(arguments).weights

    def load(device: torch.device | None) -> PreTrainedModel:
        loaded = load_causal_lm(own, attention=attention_name(own.attention), device=device)
        cast_parameters(loaded, weights)
        return loaded

    model = load_reference(
        load,
        settings.sharding,
        arguments=arguments,
        quantised=own.quantization != "none",
    )
    check_readable(model, own.attention)
    return model
