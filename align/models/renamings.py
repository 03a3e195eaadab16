"""Under which names weights are saved: the library undoes what it renamed and merged as it loaded a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from align.models.structure import find_causal_lm


def forget_unused_renamings(model: nn.Module) -> None:
    """Leaves only those renamings to be undone at saving that a weight of the checkpoint has needed.

    The library does that itself but under ZeRO-3, where it would save a composite's weights (LLaVA's, Mistral-3's,
    Gemma-3's) under names that are then not found, so that they would be drawn at random.
    """
    renamings: Any = getattr(model, "_weight_conversions", None)
    if renamings:
        renamings[:] = [renaming for renaming in renamings if renaming.was_used()]


@contextmanager
def saved_under_own_names(model: nn.Module) -> Iterator[None]:
    """Within it weights are saved under the model's own names, not the checkpoint's that it was loaded from.

    A run that goes on reads its checkpoint by the model's names, and passes over all others without a word.

    Args:
        model: the policy inside any wrapper.
    """
    lm: Any = find_causal_lm(model)
    before = getattr(lm, "_weight_conversions", None)
    lm._weight_conversions = []
    try:
        yield
    finally:
        lm._weight_conversions = before
