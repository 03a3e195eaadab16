"""The group `method` of a configuration, checked without torch: its keys, its needs, and the loss by its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from omegaconf import OmegaConf

from align.core.errors import UserError
from align.core.instantiate import check_targets

_ALLOWED_NEEDS: dict[str, tuple[Any, ...]] = {
    "reference": ("none", "same", "short"),
    "policy_short": (False, True),
    "nll_scope": ("none", "chosen", "sequence"),
    "weighting": ("prompt", "token"),
    "batch": ("prompt", "step"),
    "answers": ("pairs", "labelled", "unrelated"),
}


@dataclass(frozen=True)
class Needs:
    """What a loss reads beside the policy's log-probs.

    Attributes:
        reference: `none`; `same`: the reference scores the answers on the policy's prompt (and on the short
            one as well, where `policy_short`); `short`: on the row's short prompt.
        policy_short: the policy also scores the answers on the short prompt (`PairLogps.short`).
        nll_scope: what `PairLogps.nll` averages over: `none`, the `chosen` answer, or the whole `sequence`
            of prompt and chosen answer.
        weighting: what the loss of a step is the mean over: its prompts (`prompt`), or the scored tokens of
            their chosen answers (`token`), for a loss that is itself a mean over those tokens.
        batch: what a prompt's loss follows from: its own log-probs (`prompt`), or those of all prompts of the global
            step (`step`), which the loss is then called with at once, however they are spread over micro-batches,
            accumulation and processes.
        answers: what a row has: a chosen answer, and rejected ones where the loss reads them (`pairs`); answers that
            each have a label, one or a pair (`labelled`); these and an answer to another prompt (`unrelated`).
    """

    reference: str
    policy_short: bool
    nll_scope: str
    weighting: str = "prompt"
    batch: str = "prompt"
    answers: str = "pairs"

    @property
    def short(self) -> bool:
        """Whether anything is read on the short context."""
        return self.policy_short or self.reference == "short"

    def __post_init__(self) -> None:
        for name, values in _ALLOWED_NEEDS.items():
            value = getattr(self, name)
            if not any(
                value is allowed or (value == allowed and isinstance(value, str)) for allowed in values
            ):
                choices = ", ".join(str(allowed).lower() for allowed in values)
                raise UserError(f"method.needs.{name}={value} is unknown; choose one of {choices}")
        if self.batch == "step" and self.weighting == "token":
            raise UserError(
                "method.needs.weighting=token weighs each prompt by its own tokens, which a loss over the whole step "
                "(method.needs.batch=step) cannot be: set one of them to prompt."
            )


# A loss of the policy's log-probs alone.
NO_NEEDS: dict[str, Any] = {"reference": "none", "policy_short": False, "nll_scope": "none"}


def read_needs(config: Mapping[str, Any]) -> Needs:
    """Needs from a mapping.

    Raises:
        UserError: an unknown or missing key, or a value that no need takes.
    """
    optional = tuple(field.name for field in fields(Needs) if field.default is not MISSING)
    required = tuple(field.name for field in fields(Needs) if field.default is MISSING)
    _check_keys(config, required, "method.needs", optional=optional)
    return Needs(**{str(name): value for name, value in config.items()})


def check_method(config: Mapping[str, Any], *, allow_targets: Sequence[str] = ()) -> Needs:
    """What can be said of the group `method` before its loss is imported; see `methods.load_method`.

    Args:
        config: keys `name`, `loss` (with `_target_` and `_partial_: true`) and `needs`.
        allow_targets: packages beside `losses` whose functions `_target_` may name.

    Returns:
        Its needs.

    Raises:
        UserError: an unknown or missing key, a value that no need takes, a refused target, or a setting of the loss
            that its function does not take.
    """
    _check_keys(config, ("name", "loss", "needs"), "method")
    needs = read_needs(config["needs"])
    check_targets(config["loss"], allow=("losses", *allow_targets), where="method.loss")
    return needs


def _check_keys(
    config: Any, required: tuple[str, ...], where: str, *, optional: tuple[str, ...] = ()
) -> None:
    """Raises UserError unless `config` is a mapping with the keys `required`, and no others but `optional`."""
    known = (*required, *optional)
    if not isinstance(config, Mapping) and not OmegaConf.is_dict(config):
        raise UserError(f"{where} has to be a mapping with the keys {', '.join(known)}")
    unknown = [str(key) for key in config if key not in known]
    if unknown:
        raise UserError(f"{where}.{unknown[0]} is unknown; the keys are {', '.join(known)}")
    missing = [key for key in required if key not in config]
    if missing:
        raise UserError(f"{where}.{missing[0]} is missing; the keys are {', '.join(known)}")
