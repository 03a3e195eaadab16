"""The reference that a run's settings stand for, and its model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from align.longseq import pair_logps
from align.longseq.settings import ATTENTIONS
from align.longseq.support import check_supported
from align.models.identity import Identity
from align.models.loading import load_causal_lm
from align.reference.cache import open_cache
from align.reference.settings import reference_model
from align.reference.shards import load_reference
from align.reference.sources import AdapterOff, Frozen, Reference, autocast_forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from align.longseq.parallel import SequenceParallel
    from align.training.settings import Run


def build_reference(run: Run, policy: Any, parallel: SequenceParallel | None) -> Reference | None:
    """The reference that `reference.source` stands for, behind its cache where there is one.

    Args:
        run: the checked settings.
        policy: the model that trains; with `reference.fill_only` the reference's own, see `frozen_model`.
        parallel: this process's place in its sequence-parallel group; None without.
    """
    if run.reference_source == "none":
        return None
    precision = torch.bfloat16 if run.arguments.bf16 else torch.float16 if run.arguments.fp16 else None
    forward = autocast_forward(
        partial(pair_logps, parallel=parallel, chunk_size=run.memory.logits_chunk), precision
    )
    live: AdapterOff | Frozen
    if run.reference.fill_only:
        live = Frozen(lambda: policy, forward)
    elif run.reference_source == "adapter_off":
        live = AdapterOff(policy, forward)
    else:
        live = Frozen(partial(frozen_model, run), forward)
    if run.reference.cache is None:
        return live
    folder = Path(run.reference.cache)
    with run.arguments.main_process_first(local=False, desc="hash of the reference's weights"):
        identity = Identity.of(reference_model(run.reference, run.model), autocast=precision, cache=folder)
    return open_cache(live, folder, identity, describe=run.arguments.process_index == 0)


def frozen_model(run: Run) -> PreTrainedModel:
    """The reference's model in evaluation mode, on the training device, whole or split."""
    settings = reference_model(run.reference, run.model)
    load = partial(load_causal_lm, settings, attention=ATTENTIONS[settings.attention])
    model = load_reference(
        lambda device: load(device=device),
        run.reference.sharding,
        arguments=run.arguments,
        quantised=settings.quantization != "none",
    )
    check_supported(model)
    return model
