"""The routers of a mixture of experts: which modules they are, how they weigh, and whether they train."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from align.core.errors import AlignWarning, UserError, first_line
from align.core.telling import is_first, tell
from align.models.settings import ModelSettings, MoeSettings
from align.models.structure import experts, find_causal_lm


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def _sigmoid(logits: Tensor) -> Tensor:
    scores = logits.sigmoid()
    return scores / scores.sum(-1, keepdim=True)


# How a router makes `[n, E]` probabilities of `[n, E]` logits: Mixtral's way, and DeepSeek-V3's (arXiv:2412.19437,
# equation 19), whose sigmoids are divided by their sum.
PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {"softmax": _softmax, "sigmoid": _sigmoid}


@dataclass(frozen=True)
class Router:
    """What is known of a model's routers.

    Attributes:
        kind: their class, as the library names it for recording their logits.
        experts: E, from which each chooses.
        form: the key in `PROBABILITIES` that the weights of the chosen experts are proportional to.
    """

    kind: type[nn.Module]
    experts: int
    form: str


def router_class(model_class: type[PreTrainedModel]) -> type[nn.Module] | None:
    """The class of a model's routers; None where the library records no router's logits for it."""
    recorded: Any = (getattr(model_class, "_can_record_outputs", None) or {}).get("router_logits")
    if isinstance(recorded, list):
        recorded = recorded[0]
    kind = getattr(recorded, "target_class", recorded)
    return kind if isinstance(kind, type) else None


def routers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The routers of a model, wrapped or not, by name."""
    kind = router_class(type(find_causal_lm(model)))
    return {
        name: module
        for name, module in model.named_modules()
        if kind is not None and isinstance(module, kind)
    }


def read_router(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> Router:
    """Tries one random router of the model's sizes by itself, which tells how it makes weights of logits.

    Args:
        model_class: the causal language model's class.
        config: its configuration.

    Raises:
        UserError: the library does not say which modules route; a router that cannot be run by itself, that returns
            something else than logits, weights and choices, or whose weights follow neither form.
    """
    kind = router_class(model_class)
    refusal = f"model.moe.balance cannot be computed for {model_class.__name__}"
    if kind is None:
        raise UserError(f"{refusal}, whose routers transformers does not name: set model.moe.balance=0.")
    try:
        logits, weights, chosen = _try_router(kind, config)
        matches = [form for form in PROBABILITIES if _proportional(weights, logits, chosen, form)]
    except Exception as error:  # whatever a class's code says to being run by itself
        raise UserError(
            f"{refusal}: its {kind.__name__} cannot be tried by itself ({first_line(error)}); set model.moe.balance=0."
        ) from error
    if len(matches) != 1:
        raise UserError(
            f"{refusal}: its {kind.__name__} weighs experts by neither softmax nor sigmoid of its logits; "
            "set model.moe.balance=0."
        )
    return Router(kind, logits.shape[-1], matches[0])


_TRIED_TOKENS = 16


def _try_router(kind: Any, config: PreTrainedConfig) -> tuple[Tensor, Tensor, Tensor]:
    """`[n, E]` logits, `[n, k]` weights and choices of a random router for random hidden states."""
    width = config.get_text_config().hidden_size
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        router = kind(config.get_text_config()).float().eval()
        for weight in router.parameters():
            weight.normal_(0.0, width**-0.5, generator=generator)
        hidden = torch.randn(_TRIED_TOKENS, width, generator=generator)
        router.top_k = max(
            2, router.top_k
        )  # of a single weight one cannot tell, once it is divided by itself
        biases = [torch.zeros(router.num_experts)] * _takes_bias(router)
        logits, weights, chosen = router(hidden, *biases)
    if logits.shape[0] != _TRIED_TOKENS or chosen.shape != weights.shape:
        raise ValueError("it returns other shapes")
    return logits, weights, chosen


def _takes_bias(router: nn.Module) -> int:
    """1 where the forward asks for the correction bias of the choice beside the hidden states, else 0."""
    return len(inspect.signature(router.forward).parameters) - 1


def _proportional(weights: Tensor, logits: Tensor, chosen: Tensor, form: str) -> bool:
    """Whether a token's weights are to each other as the probabilities of its chosen experts."""
    ratio = weights.float() / PROBABILITIES[form](logits.float()).gather(1, chosen)
    return bool(((ratio.amax(1) - ratio.amin(1)) <= 1e-3 * ratio.amax(1)).all())


def check_experts(
    settings: ModelSettings, config: PreTrainedConfig, model_class: type[PreTrainedModel] | None
) -> None:
    """Holds `model.moe` against the model, before its weights load, and says what becomes of the experts.

    Args:
        settings: group `model`.
        config: the model's configuration.
        model_class: its class; None where there is none for such a configuration.

    Raises:
        UserError: keys for a model that has no experts, or for a class that does not offer what they ask.
    """
    moe, count = settings.moe, experts(config.get_text_config())
    if count <= 1:
        if moe != MoeSettings():
            raise UserError(
                f"model.moe is for mixtures of experts, and model.path={settings.path} is none: leave model.moe out."
            )
        return
    named = f"model.path={settings.path} is a mixture of {count} experts"
    if model_class is not None:
        _check_offered(moe, config, model_class)
    if moe.balance:
        tell(f"{named}: {moe.balance:g} times its load-balancing loss is added to each step's loss.")
    elif is_first():  # once in a launch, not by every process
        warnings.warn(
            f"{named}: its load-balancing loss takes no part in preference training; set model.moe.balance for that"
            f"{_named_coefficient(config)}.",
            AlignWarning,
            stacklevel=1,
        )
    if moe.router != "auto":
        becomes = "are frozen" if moe.router == "freeze" else "train in full"
        tell(f"model.moe.router={moe.router}: the layers that choose the experts {becomes}.")


def _check_offered(moe: MoeSettings, config: PreTrainedConfig, model_class: Any) -> None:
    """Refuses what a class does not offer: a way to compute experts, routers to freeze, logits to balance."""
    name = model_class.__name__
    if moe.experts not in ("auto", "eager") and not model_class._can_set_experts_implementation():
        raise UserError(
            f"model.moe.experts={moe.experts} is not offered by {name}, which computes its experts by code of its "
            "own: set model.moe.experts=auto."
        )
    if moe.router != "auto" and router_class(model_class) is None:
        raise UserError(
            f"model.moe.router names the routers of {name}, which transformers does not tell: "
            "set model.moe.router=auto."
        )
    if moe.balance:
        read_router(model_class, config)


def _named_coefficient(config: PreTrainedConfig) -> str:
    value = getattr(config.get_text_config(), "router_aux_loss_coef", None)
    return f" (its configuration names {value:g})" if isinstance(value, int | float) else ""


def freeze_routers(model: nn.Module, settings: ModelSettings) -> None:
    """Under `model.moe.router=freeze` no weight of a router trains; else everything stays as it is."""
    if settings.moe.router == "freeze":
        for router in routers_of(model).values():
            router.requires_grad_(False)
