"""A model's own log-probs of one row: its body over the row, then its own way from hidden states to logits, in slices.

The shared-prefix forward scores by the output embedding alone. Here whatever a model does behind its body counts:
factors, soft caps, norms, heads of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from align.core.errors import UserError
from align.longseq.logps import Scores, sum_dtype, target_logps, token_logps
from align.longseq.moving import from_bits
from align.longseq.parallel import SequenceParallel
from align.longseq.settings import BY_ROWS, whole_rows
from align.longseq.sums import per_token, token_values
from align.models.settings import no_balance


@dataclass(frozen=True)
class OwnRow:
    """A prompt with one of its answers (t tokens, s of them scored, c context tokens that the NLL adds).

    Attributes:
        input_ids: `[1, t]`.
        position_ids: `[1, t]`.
        predictor: `[s + c]` places in the row of the hidden states that predict the scored tokens, then the context's.
        target: `[s + c]` the ids that they predict.
        scored: s.
        slot: flat index `prompt · A + answer` in the batch; B · A for a row that scores nothing.
        factors: `[s, F]` what each scored token's log-prob is multiplied with (sums.py), as bits.
        mask: who sees whom, as the model takes it; None is causal.
    """

    input_ids: Tensor
    position_ids: Tensor
    predictor: Tensor
    target: Tensor
    scored: int
    slot: int
    factors: Tensor
    mask: Any = None


def own_row_sums(
    model: nn.Module, lm: PreTrainedModel, row: OwnRow, *, head_calls: int, scores: Scores = target_logps
) -> Tensor:
    """`[K + 1]` sums over one row, in fp64: of its scored tokens (sums.py), and of its context's log-probs.

    Args:
        model: as it is called.
        lm: the causal language model within it.
        row: what it reads.
        head_calls: in how many slices hidden states go through what stands behind the body.
        scores: what becomes of a slice's logits.
    """
    logps = own_row_logps(model, lm, row, head_calls=head_calls, scores=scores)
    logps = logps.to(sum_dtype(row.input_ids.device))
    values = token_values(logps[: row.scored], from_bits(row.factors))
    return torch.stack([*(own.sum() for own in values), per_token(logps[row.scored :])[0].sum()])


def own_row_logps(
    model: nn.Module, lm: PreTrainedModel, row: OwnRow, *, head_calls: int, scores: Scores = target_logps
) -> Tensor:
    """`[s + c]` or `[s + c, 2]` of a row's tokens, as `own_row_sums` adds them up; fp32, or fp64 of an fp64 model."""
    with _scoring(lm, row, head_calls, scores):
        output = model(input_ids=row.input_ids, **_keywords(lm, row))
    return _first(output)


def check_way(
    lm: PreTrainedModel, attention: str, *, parallel: SequenceParallel | None, routing: Any
) -> None:
    """Refuses what the library's attention does without, whichever way rows are read through it.

    Args:
        lm: the causal language model.
        attention: `model.attention`: `library` or `masked`.
        parallel: as `pair_logps`, like the next.
        routing: what would take in the routers' decisions.

    Raises:
        UserError: a sequence-parallel group, a load-balancing loss, or a model without log-probs of answers.
    """
    if routing is not None:
        raise UserError(no_balance(attention))
    if parallel is not None:
        raise UserError(whole_rows(attention, parallel.degree))
    check_own_rows(lm)


def check_own_rows(lm: PreTrainedModel) -> None:
    """Refuses a model that cannot read rows of their own.

    Raises:
        UserError: it is an encoder, or has no body whose hidden states could be scored.
    """
    if getattr(lm.config, "is_decoder", True) is False:
        raise UserError(
            f"{type(lm).__name__} is an encoder as it is configured (is_decoder=false): its tokens see those behind "
            "them, so that it has no log-probs of answers: use a causal language model."
        )
    _bodies(lm)


# ---- what a model's forward takes


def _taken(lm: PreTrainedModel) -> set[str]:
    """Names of what the model's own forward takes."""
    return set(inspect.signature(type(lm).forward).parameters)


def _takes_more(lm: PreTrainedModel) -> bool:
    """Whether it takes keywords that it does not name."""
    parameters = inspect.signature(type(lm).forward).parameters.values()
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _keywords(lm: PreTrainedModel, row: OwnRow) -> dict[str, Any]:
    """What is handed to the forward beside the tokens, as far as it takes it.

    The mask says that no token is padding, where it says nothing else. Without one the library reads a jump of
    positions as the start of another sequence, and hides what lies before it.
    """
    given = {
        "attention_mask": torch.ones_like(row.input_ids) if row.mask is None else row.mask,
        "position_ids": row.position_ids,
        "use_cache": False,
        "return_dict": True,
    }
    taken = _taken(lm)
    if _takes_more(lm):  # and hands it on to its body, which would else keep a cache
        taken.add("use_cache")
    return {name: value for name, value in given.items() if name in taken}


def check_takes_mask(lm: PreTrainedModel) -> None:
    """Refuses a model that takes no mask or no positions, of which a packed row has others than 0, 1, 2, …."""
    missing = [name for name in _OF_TOKENS if name not in _taken(lm)]
    if missing:
        raise UserError(
            f"{type(lm).__name__} takes no {missing[0]}, which model.attention=masked hands it: {BY_ROWS}."
        )


def check_positions(lm: PreTrainedModel, rows: list[OwnRow]) -> None:
    """Refuses positions that the model's forward does not take."""
    if "position_ids" in _taken(lm):
        return
    for row in rows:
        counted = torch.arange(row.position_ids.shape[1], device=row.position_ids.device)
        if not torch.equal(row.position_ids[0], counted):
            raise UserError(
                f"{type(lm).__name__} takes no positions, and these rows have other ones than 0, 1, 2, …: "
                "set positions=none."
            )


# ---- the model's own logits, a slice at a time

_OF_TOKENS = ("attention_mask", "position_ids")  # what is not the same for a slice of the row's tokens


def _bodies(lm: PreTrainedModel) -> dict[str, nn.Module]:
    """Modules that hold the token embedding, outermost first: `model` of a Llama, `model` and `model.decoder` of OPT.

    The outermost one that the model calls is its body: Llama calls `model`, OPT calls `model.decoder` itself.
    """
    embedding = lm.get_input_embeddings()
    found: dict[str, nn.Module] = {}
    for place, module in lm.named_modules(remove_duplicate=False):
        if module is embedding:
            parts = place.split(".")
            names = [".".join(parts[:length]) for length in range(1, len(parts))]
            found |= {name: lm.get_submodule(name) for name in names}
    if not found:
        raise UserError(
            f"{type(lm).__name__} has no part that reads the tokens and returns hidden states, of which log-probs "
            "could be scored: use another model class."
        )
    return found


@contextmanager
def _scoring(lm: PreTrainedModel, row: OwnRow, head_calls: int, scores: Scores) -> Iterator[None]:
    """Within the block the model returns the scores `[s + c, …]` of the row as its logits.

    By temporary forward hooks, as in forward.py and for its reasons: wrappers hold the weights gathered there.
    """
    called: list[nn.Module] = []
    scored: list[Tensor] = []

    def before_body(module: nn.Module, args: Any) -> None:
        called.append(module)

    def after_body(name: str, module: nn.Module, args: Any, output: Any) -> Any:
        if module is not called[0]:
            return output  # within the body
        states = _first(output)
        logits = _logits_behind(lm, name, output, row)
        own = token_logps(logits, states[0, row.predictor], row.target, slices=head_calls, scores=scores)
        scored.append(own)
        return _with_first(output, states[:, :0])  # the model itself makes the logits of no token

    def after_model(module: nn.Module, args: Any, output: Any) -> Any:
        # Adding the empty logits keeps the head's parameters in the graph when nothing is scored.
        return _with_first(output, scored.pop() + _first(output).sum())

    handles = [lm.register_forward_hook(after_model, prepend=True)]
    for name, body in _bodies(lm).items():
        handles.append(body.register_forward_pre_hook(before_body))
        handles.append(body.register_forward_hook(partial(after_body, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _logits_behind(lm: PreTrainedModel, name: str, output: Any, row: OwnRow) -> Callable[[Tensor], Tensor]:
    """`[n, H]` hidden states → `[n, V]` logits, by the model's own forward with the states in the place of its body's.

    It runs on a shallow copy of the model, which shares every part with it but the one called `name`.
    """
    body = lm.get_submodule(name)
    keywords = {key: value for key, value in _keywords(lm, row).items() if key not in _OF_TOKENS}

    def logits(states: Tensor) -> Tensor:
        behind = _with_part(lm, name, _Given(body, _with_first(output, states[None])))
        # The class's forward: an object's own, where a launcher has set one, is bound to the model itself.
        return _first(type(lm).forward(behind, input_ids=row.input_ids[:, : len(states)], **keywords))[0]

    return logits


def _with_part(module: Any, name: str, part: nn.Module) -> Any:
    """A shallow copy of `module` with `part` in the place of its submodule `name`: of `decoder`, of `model.decoder`."""
    first, _, rest = name.partition(".")
    changed: Any = object.__new__(
        type(module)
    )  # FSDP's classes make another class of what copy.copy asks for
    changed.__dict__.update(module.__dict__)
    changed._modules = dict(module._modules)
    setattr(changed, first, _with_part(getattr(module, first), rest, part) if rest else part)
    return changed


class _Given(nn.Module):
    """Stands in the place of a body whose output is known; whatever else is asked of it, the body answers.

    Args:
        body: the module in whose place it stands.
        output: what it returns.
    """

    def __init__(self, body: nn.Module, output: Any) -> None:
        super().__init__()
        self.output = output
        self._place = (body,)  # in a tuple, so that it is no part of this module

    def __getattr__(self, name: str) -> Any:
        """Attributes of the body, such as its embedding."""
        return getattr(self.__dict__["_place"][0], name)

    def forward(self, *unused: Any, **more: Any) -> Any:
        """What the body has returned, with some of its hidden states."""
        return self.output


def _first(output: Any) -> Tensor:
    """Hidden states of a body's output, logits of a model's: by name, or the first entry of a tuple."""
    found: Tensor = output[_key(output)]
    return found


def _with_first(output: Any, value: Tensor) -> Any:
    """The same output with `value` in their place."""
    if isinstance(output, ModelOutput):
        return type(output)(**{**output, _key(output): value})
    return (value, *output[1:])


def _key(output: Any) -> Any:
    """Where they stand; a loss, as mixtures of experts return, may stand before them."""
    if isinstance(output, ModelOutput):
        return next((name for name in ("logits", "last_hidden_state") if name in output), 0)
    return 0
