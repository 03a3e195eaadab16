"""Modules that train in full while the originals stay: PEFT's LN_TUNING put on modules of any kind.

The copy trains in the module's place. Switched off, the original runs, so that the starting model is there as reference
for the price of the copies alone and not of a second model; merged, the copy takes the original's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from align.adapters.library import put_on
from align.core.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def train_copies(
    model: PreTrainedModel, names: Iterable[str], *, trains: Callable[[str], bool] = lambda name: True
) -> PeftModel:
    """The model with a trained copy in the place of each module named.

    Args:
        model: the starting model.
        names: whole names of modules, none of them inside another.
        trains: whether a parameter, by its name in `model`, trains; what does not stays as the original in its copy.

    Raises:
        UserError: no module is named, or one of two tied weights, which would then differ from the other.
    """
    from peft import LNTuningConfig

    wanted = sorted(set(names))
    if not wanted:
        raise UserError(f"adapter chooses no module of this {type(model).__name__}: nothing would train.")
    modules = [model.get_submodule(name) for name in wanted]
    check_untied(model, wanted, modules)
    config = LNTuningConfig(target_modules=wanted, task_type="CAUSAL_LM")
    with whole([weight for module in modules for weight in module.parameters()]):
        policy = put_on(model, config)
    for name, module in zip(wanted, modules, strict=True):
        layer: Any = policy.get_base_model().get_submodule(name)
        copy = layer.ln_tuning_layers["default"]
        for own, weight in copy.named_parameters():
            weight.requires_grad_(trains(f"{name}.{own}"))
        module.requires_grad_(False)
    return policy


def check_untied(model: nn.Module, names: list[str], modules: list[nn.Module]) -> None:
    """Refuses a copy of a weight that another module has too: training would part the two."""
    for name, module in zip(names, modules, strict=True):
        inside = {id(part) for part in module.modules()}
        own = {id(weight) for weight in module.parameters()}
        for other, part in model.named_modules():
            shared = own & {id(weight) for weight in part.parameters(recurse=False)}
            if id(part) not in inside and shared:
                raise UserError(
                    f"adapter trains a copy of {name}, whose weight {other} of this {type(model).__name__} has too: "
                    "leave out both."
                )


def whole(weights: list[nn.Parameter]) -> AbstractContextManager[object]:
    """Within it weights that ZeRO-3 has scattered are whole on every process, to be copied."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters(weights)
