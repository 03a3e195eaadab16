"""Whether the shared-prefix forward computes what a model would, found out before its weights are read.

A small random copy of the architecture (longseq/small_model.py), with one layer of every kind that the configuration
has and the user's adapter, computes a step both ways (longseq/numeric.py). Its verdict is kept for the next start.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from align.core.errors import AlignWarning, UserError, first_line
from align.core.telling import tell
from align.longseq.fake_run import cannot_run, check_structure
from align.longseq.numeric import Measured, NotProvenError, measure
from align.longseq.settings import FLASH_MODULES
from align.longseq.small_model import build_small, draw_adapter
from align.longseq.support import check_config, check_supported
from align.longseq.verdicts import DIFFERS, EXACT, REFUSED, UNPROVEN, Verdict, key_of, recall, remember
from align.models.loading import causal_lm_class, load_config
from align.models.lora import add_lora
from align.models.settings import ModelSettings
from align.models.structure import experts, find_causal_lm
from align.models.text_part import text_config

Adapt = Callable[[PreTrainedModel], nn.Module]


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
    if kind is None:
        return
    if model.attention in FLASH_MODULES and getattr(text_config(config), "attn_logit_softcapping", None):
        # Its kernels cap scores; there are none on a CPU, so that the rest is held without.
        config = copy.deepcopy(config)
        text_config(config).attn_logit_softcapping = None
    if model.lora.r > 0:
        _check(kind, config, adapter=asdict(model.lora), adapt=lambda base: add_lora(base, model.lora))
    else:
        check_computed(kind, config)


def check_computed(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    """Refuses a class that the shared-prefix forward does not compute exactly.

    Args:
        model_class: the model's class.
        config: its configuration.

    Returns:
        Whether values were compared; where no small model of the class runs on a CPU, its structure alone is checked,
        and a line says so.

    Raises:
        UserError: what differs from padded rows, or why the class cannot be run.
    """
    return _check(model_class, config, adapter=None, adapt=None)


def check_adapter(model_class: type[PreTrainedModel], config: PreTrainedConfig, adapter: PeftConfig) -> bool:
    """The same with an adapter of PEFT: one that lets tokens see each other beside attention is refused.

    Prompt tuning puts virtual tokens before the row, where the row's layout does not have them; LILY's router averages
    over all tokens of a row; both trained without a word, to other values.

    Args:
        model_class: the model's class.
        config: its configuration.
        adapter: any configuration of PEFT; it is not changed.

    Returns:
        Whether values were compared.

    Raises:
        UserError: names the adapter's type and what differs.
    """
    kind = getattr(adapter.peft_type, "value", adapter.peft_type)
    if adapter.is_prompt_learning:
        raise UserError(
            f"Adapters of type {kind} put virtual tokens before the row, which its prompts and answers would not see "
            "as their own: use LoRA, or another adapter that changes weights."
        )
    return _check(
        model_class,
        config,
        adapter={name: str(value) for name, value in adapter.to_dict().items()},
        adapt=lambda base: get_peft_model(base, _small_adapter(adapter)),
        named=f" with adapters of type {kind}",
    )


def check_model(model: nn.Module) -> None:
    """The same for a model in memory, inside PEFT or not.

    Raises:
        UserError: what differs from padded rows, or why the model cannot be run.
    """
    lm = find_causal_lm(model)
    adapters = getattr(model, "peft_config", None)
    if not isinstance(adapters, dict):
        check_computed(type(lm), lm.config)
        return
    for adapter in adapters.values():
        check_adapter(type(lm), lm.config, adapter)


def prove(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    *,
    adapt: Adapt | None = None,
    named: str = "",
) -> Verdict:
    """Builds the small model and computes a step both ways; in float32 where the class does not run in float64.

    Args:
        model_class: the model's class.
        config: its configuration.
        adapt: puts an adapter on the small model.
        named: what it is, for sentences: ` with adapters of type LORA`.
    """
    for dtype in (torch.float64, torch.float32):
        try:
            model: nn.Module = build_small(model_class, config, dtype=dtype)
        except Exception as error:  # its own code says so, whatever it is
            return Verdict(UNPROVEN, _not_proven(model_class, first_line(error), named))
        try:
            check_supported(model)
            if adapt is not None:
                model = _with_adapter(model, adapt)
            found = measure(model)
        except NotProvenError as error:
            reason = first_line(error)
            continue
        except UserError as error:
            return Verdict(REFUSED, str(error))
        except Exception as error:
            return Verdict(REFUSED, cannot_run(model_class, error, named))
        kind, sentence = (EXACT, "") if found.exact else (DIFFERS, _differs(model_class, found, named))
        return Verdict(kind, sentence, found.loss, found.gradient, str(dtype).removeprefix("torch."))
    return Verdict(UNPROVEN, _not_proven(model_class, reason, named))


def _check(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    *,
    adapter: Any,
    adapt: Adapt | None,
    named: str = "",
) -> bool:
    """The verdict, remembered or found out now; raises it, or says that values were not proven."""
    key = key_of(model_class, config, adapter)
    verdict = recall(key)
    if verdict is None:
        verdict = prove(model_class, config, adapt=adapt, named=named)
        if verdict.kind == UNPROVEN:
            check_structure(model_class, config)
        remember(key, verdict)
    verdict.check()
    if verdict.kind == UNPROVEN:
        tell(verdict.sentence)
    return verdict.kind == EXACT


def _with_adapter(model: Any, adapt: Adapt) -> nn.Module:
    """The small model with an adapter that changes it; one that does not fit the small widths proves nothing."""
    try:
        adapted = adapt(model)
    except UserError:
        raise
    except Exception as error:
        raise NotProvenError(first_line(error)) from error
    draw_adapter(adapted)
    return adapted


def _small_adapter(adapter: PeftConfig) -> PeftConfig:
    """The same adapter on every layer of the small model."""
    small = copy.deepcopy(adapter)
    for name in ("layers_to_transform", "layers_pattern"):
        if hasattr(small, name):
            setattr(small, name, None)
    small.inference_mode = False
    return small


def _differs(model_class: type[PreTrainedModel], found: Measured, named: str) -> str:
    """The sentence for a class, or an adapter on it, that would train to other values."""
    return (
        f"{model_class.__name__}{named} computes something else on a shared prefix than on padded rows: {found.what} "
        f"differs (the loss by {found.loss:.0e}, gradients by up to {found.gradient:.0e}), so it would train wrongly: "
        f"use {'LoRA, or another adapter' if named else 'another model'}."
    )


def _not_proven(model_class: type[PreTrainedModel], reason: str, named: str) -> str:
    """The line for a class, or an adapter on it, of which no small model could be compared."""
    return (
        f"No small {model_class.__name__}{named} runs on a CPU ({reason.split('. ')[0]}): its layers were looked at, "
        "but that its values equal those of padded rows was not proven; `align verify` compares them at its own widths."
    )
