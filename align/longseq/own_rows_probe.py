"""Whether a model's tokens see those behind them: then its log-probs of a row would be given the answer."""

from __future__ import annotations

from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.core.errors import UserError
from align.longseq.own_logits import OwnRow, own_row_sums
from align.models.structure import evaluating

# Two rows that differ in their last token alone; what the tokens before it are given must not.
_ROWS = ((1, 2, 3, 4), (1, 2, 3, 5))
# Nats by which the log-prob of the tokens in between may differ by rounding alone, by bytes of a weight.
_ROUNDING = {2: 0.1, 4: 1e-4, 8: 1e-8}

_causal: WeakSet[PreTrainedModel] = WeakSet()


def check_causal(model: nn.Module, lm: PreTrainedModel, device: torch.device) -> None:
    """Refuses, before a model's first rows, one that is not causal: it reads two rows of four tokens.

    Nothing that a class says of itself tells it for all: XLNet reads both ways, and its configuration does not say so.
    All processes come here equally often, since each calls its models in the same order.

    Args:
        model: as it is called.
        lm: the causal language model within it.
        device: of the rows.

    Raises:
        UserError: names the model's class.
    """
    if lm in _causal:
        return
    with torch.no_grad(), evaluating(model):
        first, second = (
            own_row_sums(model, lm, _row(torch.tensor([ids], device=device)), head_calls=1)[0]
            for ids in _ROWS
        )
    if differ(lm, first, second):
        raise UserError(
            f"{type(lm).__name__} is not causal: its tokens see those behind them, so that it has no log-probs of "
            "answers: use a causal language model."
        )
    _causal.add(lm)


def differ(lm: PreTrainedModel, first: Tensor, second: Tensor) -> bool:
    """Whether two log-probs, in nats, differ by more than a model's rounding."""
    weight = next(value for value in lm.parameters() if value.is_floating_point())
    return not abs(first.item() - second.item()) <= _ROUNDING[weight.element_size()]


def _row(ids: Tensor) -> OwnRow:
    """The row with the tokens 1 and 2 scored."""
    positions = torch.arange(ids.shape[1], device=ids.device)
    return OwnRow(ids, positions[None], positions[:2], ids[0, 1:3], 2, 0, ids.new_empty(2, 0))
