"""Whether the shared-prefix forward computes what a model would, found out before its weights are read."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel

from align.core.errors import AlignWarning, UserError, first_line
from align.data.examples import Answer, TokenizedExample
from align.longseq.attention import ATTENTION
from align.longseq.forward import pair_logps
from align.longseq.head_probe import HeadWatch, check_parts
from align.longseq.parallel import place_row
from align.longseq.shared_prefix import SharedPrefixBatch, pack
from align.longseq.states import prepare_states, state_notices
from align.longseq.support import check_config, check_supported
from align.models.loading import causal_lm_class, load_config
from align.models.settings import ModelSettings
from align.models.structure import experts


def check_architecture(model: ModelSettings) -> None:
    """Refuses an architecture that the shared-prefix forward does not compute, before its weights load."""
    config = load_config(model)
    check_config(config)
    if experts(config) > 1:
        warnings.warn(
            f"model.path={model.path} is a mixture of {experts(config)} experts: its load-balancing loss takes no part "
            "in preference training here.",
            AlignWarning,
            stacklevel=1,
        )
    kind = causal_lm_class(model, config)
    if kind is not None:
        check_computed(kind, config)


def check_computed(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    """Runs all layers once on fake tensors, which have shapes and no values, and take no memory.

    A model whose code needs values there (by printing, or branching on them) is not refused for that: the first
    real forward holds every model to the same.

    Args:
        model_class: the model's class.
        config: its configuration.

    Returns:
        Whether the forward ran to its end.

    Raises:
        UserError: layers attend by code of their own, or do not hand the row's layout on; something stands between
            the last hidden states and the logits beside the head; or the class cannot be run at all.
    """
    # The class itself: under ZeRO-3 the library's `from_config` would scatter the weights.
    build: Any = model_class
    batch = _smallest_batch()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            with _bfloat16():
                model = build(copy.deepcopy(config)).eval()
            check_supported(model)
            check_parts(model)
            model.set_attn_implementation(ATTENTION)
            prepare_states(model)
            for sentence in state_notices(model):
                warnings.warn(sentence, AlignWarning, stacklevel=1)
            _check_forward(model, _fake(batch, mode))
    except (NotImplementedError, RuntimeError):
        return False  # as torch says that an operation has no version for fake tensors, or that a value is not there
    except UserError:
        raise
    except Exception as error:  # a class that takes no such input, or whose attention the library refuses
        said = first_line(error).split(". ")[0]
        raise UserError(
            f"{model_class.__name__} cannot be run by the shared-prefix forward ({said}): use another model."
        ) from error
    return True


@contextmanager
def _bfloat16() -> Iterator[None]:
    """Within it weights are made in bfloat16, which is all that the kernel for mixtures of experts takes."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _check_forward(model: PreTrainedModel, batch: SharedPrefixBatch) -> None:
    """Attention of every layer is reached, and logits are the head of the last hidden states."""
    row, layout = place_row(batch.rows[0], None)
    with HeadWatch(model) as watch:
        model(input_ids=row.input_ids, position_ids=row.position_ids, layout=layout, use_cache=False)
    watch.check()
    pair_logps(model, batch)


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
