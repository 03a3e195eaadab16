"""A forward of the whole architecture on fake tensors: what can be seen of it where its values cannot be computed."""

from __future__ import annotations

import copy
import traceback
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_utils import set_zero3_state

from align.core.errors import UserError, first_line
from align.data.examples import Answer, TokenizedExample
from align.longseq.attention import ATTENTION
from align.longseq.forward import pair_logps
from align.longseq.head_probe import check_parts
from align.longseq.own_logits import check_own_rows
from align.longseq.settings import INSTEAD, cannot_share
from align.longseq.shared_prefix import SharedPrefixBatch, pack
from align.longseq.small_model import default_dtype
from align.longseq.support import check_supported
from align.models.settings import LIBRARY, MASKED, OF_LIBRARY
from align.models.text_part import set_attention


def check_structure(model_class: type[PreTrainedModel], config: PreTrainedConfig, attention: str) -> bool:
    """Runs all layers once on fake tensors, which have shapes and no values, and take no memory.

    A model whose code needs values there (by printing, or branching on them), or a GPU, is not refused for that: the
    first real forward holds every model to the same.

    Args:
        model_class: the model's class.
        config: its configuration.
        attention: as `model.attention`; rows of their own ask for a body and a head alone.

    Returns:
        Whether the forward ran to its end.

    Raises:
        UserError: layers attend by code of their own, or do not hand the row's layout on; something stands between
            the last hidden states and the logits beside the head; or the class cannot be run at all.
    """
    # The class itself: under ZeRO-3 the library's `from_config` would scatter the weights.
    build: Any = model_class
    if attention in OF_LIBRARY:
        return _check_own_rows(build, config)
    batch = _smallest_batch()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            # bfloat16 is all that the kernel for mixtures of experts takes; drawing weights needs values in some
            # (SigLIP's tower).
            with default_dtype(torch.bfloat16), no_init_weights(), set_zero3_state():
                model = build(copy.deepcopy(config)).eval()
            check_supported(model)
            check_parts(model)
            set_attention(model, ATTENTION)
            pair_logps(model, _fake(batch, mode))
    except (NotImplementedError, RuntimeError):
        return False  # as torch says that an operation has no version for fake tensors, or that a value is not there
    except UserError:
        raise
    except Exception as error:  # a class that takes no such input, or whose attention the library refuses
        if _in_a_kernel(error):
            return False
        raise UserError(cannot_run(model_class, error)) from error
    return True


# Packages whose kernels transformers takes where they are installed, and which run on a GPU alone.
_KERNELS = {"triton", "fla", "mamba_ssm", "causal_conv1d", "flash_attn", "kernels"}


def _in_a_kernel(error: BaseException) -> bool:
    """Whether a GPU's kernel has refused tensors that are not on one."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").partition(".")[0] in _KERNELS for frame, _ in frames)


def _check_own_rows(build: Any, config: PreTrainedConfig) -> bool:
    """Refuses a class that cannot read rows of their own; tensors of the meta device have shapes and no values."""
    try:
        with torch.device("meta"):
            model = build(copy.deepcopy(config))
    except (NotImplementedError, RuntimeError):
        return False  # a class that needs values to be made is looked at when it is loaded
    check_own_rows(model)
    return True


_READ = {LIBRARY: "read rows of their own", MASKED: "read packed rows by a mask"}


def cannot_run(
    model_class: type[PreTrainedModel], error: BaseException, named: str = "", attention: str = "sdpa"
) -> str:
    """The sentence for a class that ends in somebody else's error."""
    said = first_line(error).split(". ")[0]
    if attention in OF_LIBRARY:
        return f"{model_class.__name__}{named} cannot {_READ[attention]} ({said}): {INSTEAD[attention]}."
    other = "use LoRA, or another adapter that changes weights" if named else None
    problem = f"{model_class.__name__}{named} cannot be run by the shared-prefix forward ({said})"
    return str(cannot_share(problem, instead=other))


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
