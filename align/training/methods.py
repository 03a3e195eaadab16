"""A method: the loss that a YAML of `hydra_conf/method/` names, and what it needs from the forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from omegaconf import open_dict

from align.core.errors import UserError, first_line
from align.core.instantiate import instantiate
from align.data.weighing import Weigher
from align.runs.api import compose
from align.training.method_settings import NO_NEEDS, Needs, check_method, check_token_weights, read_needs
from losses import LossOutput, LossState, PairLogps

Loss = Callable[[PairLogps, PairLogps | None], LossOutput]


@dataclass(frozen=True)
class Method:
    """A loss with its settings filled in: `loss(policy, reference) -> LossOutput`, and its needs.

    `token_weights` says what the tokens of answers weigh, where the loss reads that; None leaves all at 1.
    """

    name: str
    loss: Loss
    needs: Needs
    token_weights: Weigher | None = None

    def uses_rejected(self) -> bool:
        """Whether the loss compares answers at all; SFT does not, so its rows may come without rejected ones.

        What counts is the graph, not the gradient's value: that of a wide margin rounds to 0. Of weighted sums, in
        which all answers are one tensor, it is the value.
        """
        policy, reference = made_up_logps(self.needs)
        read = [logps for logps in (policy, policy.short) if logps is not None]
        alone = [of_pairs.requires_grad_() for logps in read for of_pairs in _of_rejected(logps)]
        joined = [logps.weighted.requires_grad_() for logps in read if logps.weighted is not None]
        loss = self.loss(policy, reference).loss.sum()
        if not loss.requires_grad:
            return False
        gradients = torch.autograd.grad(loss, [*alone, *joined], allow_unused=True)
        of_answers = [gradient[:, 1:] for gradient in gradients[len(alone) :] if gradient is not None]
        return any(one is not None for one in gradients[: len(alone)]) or any(one.any() for one in of_answers)

    def requires_rejected(self) -> bool:
        """Whether a row without a rejected answer cannot be used: the loss reads them, and labels none."""
        return self.uses_rejected() and not self.needs.labelled

    def states(self) -> dict[str, LossState]:
        """What the loss remembers from step to step, by the setting's name; empty for most."""
        return {name: state for name, (_, state) in self.learners().items()}

    def learners(self) -> dict[str, tuple[Loss, LossState]]:
        """`states`, each with the loss whose rewards it learns from: of a mixture, one of its losses.

        By the setting's name, `shift`, and below a mapping of losses `losses.bco.shift`.
        """
        found: dict[str, tuple[Loss, LossState]] = {}
        for name, value in getattr(self.loss, "keywords", {}).items():
            if isinstance(value, LossState):
                found[name] = (self.loss, value)
            elif isinstance(value, Mapping):
                for key, loss in value.items():
                    inner = Method(str(key), loss, self.needs).learners()
                    found |= {f"{name}.{key}.{setting}": learner for setting, learner in inner.items()}
        return found


def load_method(config: Mapping[str, Any], *, allow_targets: Sequence[str] = ()) -> Method:
    """The method that the group `method` of a configuration describes.

    The loss is tried once on made-up log-probs that follow its needs, so that settings which do not fit
    (a wrong type, a missing one, a loss that needs a reference declared `none`) end here and not after a
    model has loaded.

    Args:
        config: keys `name`, `loss` (with `_target_` and `_partial_: true`) and `needs`.
        allow_targets: packages beside `losses` whose functions `_target_` may name.

    Raises:
        UserError: see above; an unknown or missing key; a refused target.
    """
    needs = check_method(config, allow_targets=allow_targets)
    loss = instantiate(config["loss"], allow=("losses", *allow_targets), where="method.loss")
    if not callable(loss):
        raise UserError(
            "method.loss has to be a function of log-probs: add `_partial_: true` beside `_target_`"
        )
    method = Method(name=str(config["name"]), loss=loss, needs=needs)
    _try(method)
    return method


def named_method(
    method: str | Callable[..., LossOutput],
    *,
    needs: Needs | Mapping[str, Any] | None = None,
    token_weights: Weigher | None = None,
    **settings: Any,
) -> Method:
    """A method by its name, `align.method("logo", beta=2.5)`, or of your own loss, `align.method(my_loss, beta=1)`.

    Args:
        method: `logo`, `dpo`, … of `hydra_conf/method/`; or a function `loss(policy, reference, *, …)`.
        needs: of a function, see `Needs`: what is left out is `none`. A named method has its own.
        token_weights: says what tokens weigh: `align.data.weighers.Rank()`, or a weigher of your own.
        settings: of its loss, in place of the YAML's.

    Raises:
        UserError: an unknown name, need or setting; a function that is no loss.
    """
    if isinstance(method, str):
        if needs is not None:
            raise UserError(f"method {method} has needs of its own: needs= belongs to a function.")
        config = compose("train", [f"method={method}"]).method
        with open_dict(config):
            config.loss.update({name: _plain(name, value) for name, value in settings.items()})
        return weighed(load_method(config), token_weights)
    if not callable(method):
        raise UserError(f"align.method takes a name or a function, not a {type(method).__name__}.")
    if not isinstance(needs, Needs):
        needs = read_needs(NO_NEEDS | dict(needs or {}))
    name = getattr(method, "__name__", type(method).__name__)
    own = Method(name, partial(method, **settings) if settings else method, needs)
    _try(own)
    return weighed(own, token_weights)


def weighed(method: Method, token_weights: Weigher | None) -> Method:
    """The method with weights of tokens.

    Raises:
        UserError: a key of the weigher's is out of range, or the loss does not read weights.
    """
    check_token_weights(method.name, method.needs, token_weights)
    return replace(method, token_weights=token_weights)


def _plain(name: str, value: Any) -> Any:
    """A setting as YAML could have it: numpy's and torch's numbers as Python's."""
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.numel() == 1):
        return value.item()
    if callable(value):
        raise UserError(
            f"{name}={value!r}: what a named method calls is named too, as in its YAML: "
            f"{name}={{'_target_': 'package.function', '_partial_': True}}."
        )
    if isinstance(value, (np.ndarray, torch.Tensor)):
        raise UserError(f"{name}={value!r} is no setting of a loss: give a number, a text or a list.")
    return value


def made_up_logps(needs: Needs, *, prompts: int = 1, rejected: int = 1) -> tuple[PairLogps, PairLogps | None]:
    """Policy and reference log-probs as a forward that obeys `needs` would give them, for trying a loss.

    Args:
        needs: decides on the reference, and on the fields that are None unless they are asked for.
        prompts: B.
        rejected: M.
    """
    beside = _beside(needs, prompts, rejected)
    short = _answers(prompts, rejected, **beside) if needs.policy_short else None
    nll = None if needs.nll_scope == "none" else torch.full((prompts,), 2.0)
    reference = None if needs.reference == "none" else _answers(prompts, rejected, short=short, **beside)
    ones = torch.ones(prompts, 1 + rejected)
    values = {"prompt": ones[:, 0], "answer": ones, "label": torch.eye(1 + rejected)[0].expand_as(ones)}
    columns = {name: values[kind] for name, kind in needs.columns.items()}
    return _answers(prompts, rejected, nll=nll, short=short, columns=columns, **beside), reference


def _beside(needs: Needs, prompts: int, rejected: int) -> dict[str, torch.Tensor]:
    """What is summed of each answer beside its log-prob: as if all tokens weighed 1 and answers were of one length."""
    sums = torch.full((prompts, 1 + rejected), -30.0)
    sums[:, 0] = -20.0
    lengths = torch.full((prompts, 1 + rejected), 10.0)
    found: dict[str, torch.Tensor] = {}
    if needs.token_weights:
        found |= {"weighted": sums.clone(), "weight": lengths}
    if needs.fronts:
        found |= {"chosen_front": sums[:, :1].expand(-1, rejected), "rejected_front": sums[:, 1:].clone()}
    if needs.collision:
        found["collision"] = -lengths
    return found


def _answers(prompts: int, rejected: int, **extra: Any) -> PairLogps:
    """Answers of 10 tokens: −20 nats for the chosen one, −30 for every rejected one."""
    return PairLogps(
        chosen=torch.full((prompts,), -20.0),
        rejected=torch.full((prompts, rejected), -30.0),
        chosen_length=torch.full((prompts,), 10),
        rejected_length=torch.full((prompts, rejected), 10),
        **extra,
    )


def _of_rejected(logps: PairLogps) -> list[torch.Tensor]:
    """What is of rejected answers alone."""
    return [logps.rejected, *([] if logps.rejected_front is None else [logps.rejected_front])]


def _try(method: Method) -> None:
    """Calls the loss once; raises UserError where it does not take what the settings and needs give it."""
    policy, reference = made_up_logps(method.needs)
    try:
        output = method.loss(policy, reference)
    except Exception as error:  # of the caller's own function: whatever it raises, it is not fit for training
        raise UserError(
            f"method {method.name}: its loss and its settings do not fit: {first_line(error)}"
        ) from error
    is_output = isinstance(output, LossOutput) and isinstance(output.loss, torch.Tensor)
    if not is_output or output.loss.shape != policy.chosen.shape:
        raise UserError(f"method {method.name}: its loss has to return a LossOutput with one loss a prompt")
