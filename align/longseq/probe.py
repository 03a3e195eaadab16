"""Whether the shared-prefix forward computes what a model would, found out before its weights are read.

A small random copy of the architecture (longseq/small_model.py), with one layer of every kind that the configuration
has and the user's adapter, computes a step both ways (longseq/numeric.py). Its verdict is kept for the next start.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import transformers
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from align.core.errors import AlignWarning, UserError, first_line
from align.core.telling import tell
from align.longseq.fake_run import cannot_run, check_structure
from align.longseq.numeric import Measured, NotProvenError, measure
from align.longseq.settings import BY_ROWS, INSTEAD, by_a_mask, cannot_share
from align.longseq.small_model import behind_prompt, build_small, draw_adapter
from align.longseq.states import state_notices
from align.longseq.support import check_config, check_readable
from align.longseq.verdicts import DIFFERS, EXACT, REFUSED, UNPROVEN, Verdict, key_of, recall, remember
from align.models.loading import causal_lm_class, load_config
from align.models.routers import check_experts
from align.models.settings import LIBRARY, MASKED, OF_LIBRARY, ModelSettings
from align.models.soft_prompt import soft_ids
from align.models.structure import find_causal_lm

# How many keys a layer selects by an index of its own: among random scores many are equal, and the length of a row
# decides between them, so that the library's own attention is compared with padded rows without a selection.
_SELECTIONS = ("index_topk", "indexer_budget")


@dataclass(frozen=True)
class Adapter:
    """An adapter as the check takes it.

    Attributes:
        settings: all that decides on what it does, in plain values.
        put_on: the small model with it.
        named: what it is, for sentences: ` with adapters of type LILY`.
    """

    settings: Any
    put_on: Callable[[PreTrainedModel], nn.Module]
    named: str = ""


def check_architecture(model: ModelSettings) -> None:
    """Refuses an architecture whose rows `model.attention` cannot read, before its weights load."""
    config = load_config(model)
    check_config(config, attention=model.attention)
    kind = causal_lm_class(model, config)
    check_experts(model, config, kind)
    if kind is None:
        raise UserError(
            f"model.path={model.path}: transformers {transformers.__version__} has no causal language model of type "
            f"{config.model_type}: use another model, or one whose own code trust_remote_code=true runs."
        )
    if model.adapter is not None:
        tried = model.adapter.without_values()
        adapter = Adapter({"kind": tried.kind} | asdict(tried), tried.add)
        _check(kind, config, model.attention, adapter)
    else:
        check_computed(kind, config, attention=model.attention)


def check_computed(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, *, attention: str = "sdpa"
) -> bool:
    """Refuses a class that the shared-prefix forward, or the library's own attention, does not compute exactly.

    Args:
        model_class: the model's class.
        config: its configuration.
        attention: as `model.attention`; with `library` it is rows of their own that are held against padded ones, with
            `masked` packed rows with a mask.

    Returns:
        Whether values were compared; where no small model of the class runs on a CPU, its structure alone is checked,
        and a line says so.

    Raises:
        UserError: what differs from padded rows, or why the class cannot be run.
    """
    return _check(model_class, config, attention, None)


def check_adapter(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    adapter: PeftConfig,
    *,
    attention: str = "sdpa",
    soft: int = 0,
) -> bool:
    """The same with an adapter of PEFT: one that lets tokens see each other beside attention is refused.

    Prompt tuning puts virtual tokens before the row, where the row's layout does not have them; LILY's router averages
    over all tokens of a row; both trained without a word, to other values.

    Args:
        model_class: the model's class.
        config: its configuration.
        adapter: any configuration of PEFT; it is not changed.
        attention: as `model.attention`.
        soft: tokens of the model's soft prompt (models/soft_prompt.py); 0 without one.

    Returns:
        Whether values were compared.

    Raises:
        UserError: names the adapter's type and what differs.
    """
    kind = getattr(adapter.peft_type, "value", adapter.peft_type)
    if (
        adapter.is_prompt_learning
    ):  # with rows of their own its tokens' positions are not those of the row either
        raise UserError(
            f"Adapters of type {kind} put virtual tokens before the row, which its prompts and answers would not see "
            "as their own: use LoRA, or another adapter that changes weights."
        )
    own = Adapter(
        settings_of(adapter) | {"soft": str(soft)},
        lambda base: get_peft_model(behind_prompt(base, soft), _small_adapter(adapter)),
        f" with adapters of type {kind}",
    )
    return _check(model_class, config, attention, own)


def check_model_in_memory(model: nn.Module, attention: str = "sdpa") -> None:
    """The same for a model in memory, inside PEFT or not.

    Args:
        model: with its weights, which are not looked at.
        attention: as `model.attention`.

    Raises:
        UserError: what differs from padded rows, or why the model cannot be run.
    """
    lm = find_causal_lm(model)
    adapters = getattr(model, "peft_config", None)
    if not isinstance(adapters, dict):
        check_computed(type(lm), lm.config, attention=attention)
        return
    for adapter in adapters.values():
        check_adapter(type(lm), lm.config, adapter, attention=attention, soft=len(soft_ids(lm)))


def prove(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    *,
    adapter: Adapter | None = None,
    attention: str = "sdpa",
) -> Verdict:
    """Builds the small model and computes a step both ways; in float32 where the class does not run in float64.

    Args:
        model_class: the model's class.
        config: its configuration.
        adapter: what is put on the small model; None is nothing.
        attention: as `model.attention`.
    """
    named = "" if adapter is None else adapter.named
    keep = _SELECTIONS if attention in OF_LIBRARY else ()
    verdict = Verdict(UNPROVEN)
    for dtype in (torch.float64, torch.float32):
        try:
            model: nn.Module = build_small(model_class, config, dtype=dtype, keep=keep)
        except Exception as error:  # its own code says so, whatever it is
            return Verdict(UNPROVEN, _not_proven(model_class, first_line(error), named))
        try:
            check_readable(model, attention)
            if adapter is not None:
                model = _with_adapter(model, adapter)
            found = measure(model, attention=attention)
        except NotProvenError as error:
            verdict = Verdict(UNPROVEN, _not_proven(model_class, first_line(error), named))
            continue
        except UserError as error:
            return Verdict(REFUSED, str(error))
        except Exception as error:  # some operations take no float64
            verdict = Verdict(REFUSED, cannot_run(model_class, _said(error, attention), named, attention))
            continue
        kind, sentence = (
            (EXACT, "") if found.exact else (DIFFERS, _differs(model_class, found, named, attention))
        )
        name = str(dtype).removeprefix("torch.")
        notices = () if attention == LIBRARY else tuple(state_notices(model))
        return Verdict(kind, sentence, found.loss, found.gradient, name, notices)
    return verdict


def _check(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    attention: str,
    adapter: Adapter | None,
) -> bool:
    """The verdict, remembered or found out now; raises it, or says that values were not proven."""
    way = attention if attention in OF_LIBRARY else "shared"
    key = key_of(model_class, config, [way, None if adapter is None else adapter.settings])
    verdict = recall(key)
    if verdict is None:
        verdict = _settled(prove(model_class, config, adapter=adapter, attention=attention), attention)
        if verdict.kind in (DIFFERS, REFUSED) and attention not in OF_LIBRARY:
            masked = prove(model_class, config, adapter=adapter, attention=MASKED).kind == EXACT
            verdict = replace(verdict, sentence=by_a_mask(verdict.sentence)) if masked else verdict
        if verdict.kind == UNPROVEN:
            check_structure(model_class, config, attention)
        remember(key, verdict)
    verdict.check()
    for notice in verdict.notices:
        warnings.warn(notice, AlignWarning, stacklevel=1)
    if verdict.kind == UNPROVEN:
        tell(verdict.sentence)
    return verdict.kind == EXACT


def _settled(verdict: Verdict, attention: str) -> Verdict:
    """Nothing but its values says of a class whether it heeds a mask: with `masked` what is not proven is refused."""
    if verdict.kind != UNPROVEN or attention != MASKED:
        return verdict
    unproven = verdict.sentence.split(": its layers")[0]
    return Verdict(REFUSED, f"{unproven}, so that nothing proves that it heeds a mask: {BY_ROWS}.")


_WAYS = {LIBRARY: "in rows of their own", MASKED: "on packed rows with a mask"}


def _with_adapter(model: Any, adapter: Adapter) -> nn.Module:
    """The small model with an adapter that changes it; one that does not fit the small widths proves nothing."""
    try:
        adapted = adapter.put_on(model)
    except UserError:
        raise
    except Exception as error:
        raise NotProvenError(first_line(error)) from error
    draw_adapter(adapted)
    return adapted


def settings_of(adapter: PeftConfig) -> dict[str, str]:
    """All that an adapter is set to, as text that is the same in every process: sets have no order of their own."""
    values = adapter.to_dict()
    return {name: str(sorted(value) if isinstance(value, set) else value) for name, value in values.items()}


def _small_adapter(adapter: PeftConfig) -> PeftConfig:
    """The same adapter on every layer of the small model."""
    small = copy.deepcopy(adapter)
    for name in ("layers_to_transform", "layers_pattern"):
        if hasattr(small, name):
            setattr(small, name, None)
    small.inference_mode = False
    return small


def _said(error: Exception, attention: str) -> Exception:
    """What a model ends in that ran on padded rows; most often it reads the mask that a shared prefix does without."""
    if "NoneType" in str(error) and attention not in OF_LIBRARY:
        return ValueError(
            "its layers read an attention mask by themselves, which a shared prefix does without"
        )
    return error


def _differs(model_class: type[PreTrainedModel], found: Measured, named: str, attention: str) -> str:
    """The sentence for a class, or an adapter on it, that would train to other values."""
    way = _WAYS.get(attention, "on a shared prefix")
    problem = (
        f"{model_class.__name__}{named} computes something else {way} than on padded rows: {found.what} differs (the "
        f"loss by {found.loss:.0e}, gradients by up to {found.gradient:.0e}), so that it would train wrongly"
    )
    other = "use LoRA, or another adapter that changes weights" if named else None
    if attention in OF_LIBRARY:
        return f"{problem}: {other or INSTEAD[attention]}."
    return str(cannot_share(problem, instead=other))


def _not_proven(model_class: type[PreTrainedModel], reason: str, named: str) -> str:
    """The line for a class, or an adapter on it, of which no small model could be compared."""
    return (
        f"No small {model_class.__name__}{named} runs on a CPU ({reason.split('. ')[0]}): its layers were looked at, "
        "but that its values equal those of padded rows was not proven; `align verify` compares them at its own widths."
    )
