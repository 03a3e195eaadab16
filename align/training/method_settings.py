"""The group `method` of a configuration, checked without torch: its keys, its needs, and the loss by its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from align.core.errors import UserError
from align.core.instantiate import check_targets

if TYPE_CHECKING:
    from align.data.weighing import Weigher


_ALLOWED_NEEDS: dict[str, tuple[Any, ...]] = {
    "reference": ("none", "same", "short"),
    "policy_short": (False, True),
    "nll_scope": ("none", "chosen", "sequence"),
    "weighting": ("prompt", "token", "sequence"),
    "batch": ("prompt", "step"),
    "answers": ("own", "unrelated"),
    "token_weights": (False, True),
    "fronts": (False, True),
    "collision": (False, True),
}
COLUMN_KINDS = ("prompt", "answer", "label")  # of `needs.columns`


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
            their chosen answers (`token`), for a loss that is itself a mean over those tokens; `sequence` counts the
            tokens of the prompts too, for the mean that is `nll` where `nll_scope` is `sequence`.
        batch: what a prompt's loss follows from: its own log-probs (`prompt`), or those of all prompts of the global
            step (`step`), which the loss is then called with at once, however they are spread over micro-batches,
            accumulation and processes.
        answers: which of them a row has: its `own`, or also one to another prompt (`unrelated`), by which KTO
            estimates a KL; its label is −1.
        columns: numbers of a row that reach the loss (`PairLogps.columns`), name → kind: `prompt`, one a row;
            `answer`, one for each answer, the chosen one's first; or `label`, 1 for a good answer and 0 for a bad one,
            which a pair has by itself. `data.numbers` says where rows have them under other names.
        token_weights: the loss reads weighted sums (`PairLogps.weighted`), so that `token_weights` has a say.
        fronts: the loss reads both answers of a pair only as far as the shorter one goes, or apart up to there
            (`PairLogps.chosen_front`, `rejected_front`).
        collision: the loss reads how sure the policy is (`PairLogps.collision`).
    """

    reference: str
    policy_short: bool
    nll_scope: str
    weighting: str = "prompt"
    batch: str = "prompt"
    answers: str = "own"
    columns: Mapping[str, str] = field(default_factory=dict)
    token_weights: bool = False
    fronts: bool = False
    collision: bool = False

    @property
    def short(self) -> bool:
        """Whether anything is read on the short context."""
        return self.policy_short or self.reference == "short"

    @property
    def labelled(self) -> bool:
        """Whether answers are judged by labels, so that a row may have a single one, good or bad."""
        return "label" in self.columns.values()

    def __post_init__(self) -> None:
        for name, values in _ALLOWED_NEEDS.items():
            value = getattr(self, name)
            if not any(
                value is allowed or (value == allowed and isinstance(value, str)) for allowed in values
            ):
                choices = ", ".join(str(allowed).lower() for allowed in values)
                raise UserError(f"method.needs.{name}={value} is unknown; choose one of {choices}")
        if self.fronts and self.short:
            raise UserError(
                "method.needs.fronts cuts whole answers, and a short context is read turn by turn: set "
                "needs.policy_short=false and needs.reference=none or same"
            )
        if self.weighting == "sequence" and self.nll_scope != "sequence":
            raise UserError(
                f"method.needs.weighting=sequence counts the tokens of prompt and answer, over which "
                f"method.needs.nll_scope={self.nll_scope} takes no mean: set method.needs.nll_scope=sequence, or "
                "weighting=token."
            )
        if self.batch == "step" and self.weighting != "prompt":
            raise UserError(
                f"method.needs.weighting={self.weighting} weighs each prompt by its own tokens, which a loss over the "
                "whole step (method.needs.batch=step) cannot be: set one of them to prompt."
            )
        if self.answers == "unrelated" and self.short:
            raise UserError(
                "method.needs.answers=unrelated puts another prompt's answer behind the policy's prompt, and short "
                "prompts have none: set method.needs.reference to none or same, and policy_short to false."
            )
        if not isinstance(self.columns, Mapping):
            raise UserError("method.needs.columns has to be a mapping: a number's name → prompt or answer")
        for name, kind in self.columns.items():
            if kind not in COLUMN_KINDS:
                raise UserError(
                    f"method.needs.columns.{name}={kind} is unknown; choose one of {', '.join(COLUMN_KINDS)}"
                )


def check_step(needs: Needs, *, prompts: int) -> None:
    """Refuses steps of one prompt where a loss holds prompts of a step against each other.

    Args:
        needs: of the method.
        prompts: of a global step: of a micro-batch, times accumulation, times data-parallel groups.

    Raises:
        UserError: there is one.
    """
    if needs.batch == "step" and prompts < 2:
        raise UserError(
            "The method's loss follows from all prompts of a step, and a step has one: raise "
            "trainer.per_device_train_batch_size or trainer.gradient_accumulation_steps."
        )


def read_again_words(needs: Needs, accumulation: int) -> list[str]:
    """What is said where a loss over the whole step reads rows twice; nothing where it does not.

    Args:
        needs: of the method.
        accumulation: micro-batches of a step.
    """
    if needs.batch == "prompt" or accumulation == 1:
        return []
    return [
        f"The loss follows from all prompts of a step: with trainer.gradient_accumulation_steps={accumulation} each "
        "row is read once before, without gradients, which a larger trainer.per_device_train_batch_size saves."
    ]


# A loss of the policy's log-probs alone.
NO_NEEDS: dict[str, Any] = {"reference": "none", "policy_short": False, "nll_scope": "none"}


def read_needs(config: Mapping[str, Any]) -> Needs:
    """Needs from a mapping.

    Raises:
        UserError: an unknown or missing key, or a value that no need takes.
    """
    required = tuple(
        one.name for one in fields(Needs) if one.default is MISSING and one.default_factory is MISSING
    )
    optional = tuple(one.name for one in fields(Needs) if one.name not in required)
    _check_keys(config, required, "method.needs", optional=optional)
    plain: Any = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    return Needs(**{str(name): value for name, value in plain.items()})


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


def check_token_weights(name: str, needs: Needs, weigher: Weigher | None) -> None:
    """Refuses weights of tokens that nobody reads, and keys out of their range.

    Args:
        name: of the method.
        needs: of the method.
        weigher: of the group `token_weights`; None weighs nothing.

    Raises:
        UserError: see above.
    """
    if weigher is None:
        return
    if not needs.token_weights:
        raise UserError(
            f"method={name} does not read weights of tokens: set token_weights=none, or take method=weighted_sft, "
            "full_ranking or another whose needs.token_weights is true."
        )
    weigher.check()


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
