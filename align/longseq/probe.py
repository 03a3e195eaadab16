"""Whether the shared-prefix forward reaches every layer of a model, found out before its weights are read."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel

from align.data.examples import Answer, TokenizedExample
from align.longseq.attention import ATTENTION
from align.longseq.forward import pair_logps
from align.longseq.shared_prefix import SharedPrefixBatch, pack
from align.longseq.support import check_supported


def check_attention_reached(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    """Runs all layers once on fake tensors, which have shapes and no values, and take no memory.

    A model whose code needs values there (by printing, or branching on them) is not refused for that: the first
    real forward holds every model to the same.

    Args:
        model_class: the model's class.
        config: its configuration.

    Returns:
        Whether the forward ran to its end.

    Raises:
        UserError: layers attend by code of their own, or do not hand the row's layout on.
    """
    # The class itself: under ZeRO-3 the library's `from_config` would scatter the weights.
    build: Any = model_class
    batch = _smallest_batch()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            model = build(copy.deepcopy(config)).eval()
            check_supported(model)
            model.set_attn_implementation(ATTENTION)
            pair_logps(model, _fake(batch, mode))
    except (NotImplementedError, RuntimeError):
        return False  # as torch says that an operation has no version for fake tensors, or that a value is not there
    return True


def _fake(batch: SharedPrefixBatch, mode: FakeTensorMode) -> SharedPrefixBatch:
    """The same shapes without values."""
    rows = []
    for row in batch.rows:
        tensors: dict[str, Any] = {
            name: mode.from_tensor(value) for name, value in vars(row).items() if isinstance(value, Tensor)
        }
        rows.append(replace(row, **tensors))
    return SharedPrefixBatch(tuple(rows))


def _smallest_batch() -> SharedPrefixBatch:
    """Two tokens of prompt and two answers of one."""
    answer = Answer(np.zeros(1, dtype=np.int64), np.ones(1, dtype=bool))
    return pack([TokenizedExample("probe:1", np.zeros(2, dtype=np.int64), np.arange(2), (answer, answer))])
