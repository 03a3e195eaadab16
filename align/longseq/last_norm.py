"""The norm behind the last layer runs on the tokens that are scored alone: it works token by token.

A norm computes in float32, and its backward pass keeps several tensors as long as what it reads. Over a row of 131,072
tokens that is more than a layer needs; over its answers it is little. Whether a decoder ends in its norm is found out
on a small copy of it, once for each configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.longseq.small_model import build_small
from align.models.text_part import text_decoder


class Scored:
    """The last hidden states of the scored tokens.

    Args:
        predictor: `[S]` their places in the row.
    """

    def __init__(self, predictor: Tensor) -> None:
        self._predictor, self._picked = predictor, False

    def before_norm(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hook ahead of the norm: of `[1, T, H]` it reads `[1, S, H]`."""
        (hidden,) = args
        self._picked = True
        # By a view, so that the backward pass makes one tensor as long as the row, not two.
        return (hidden.squeeze(0)[self._predictor].unsqueeze(0),)

    def of(self, last_hidden: Tensor) -> Tensor:
        """`[S, H]` of what the decoder returned: of all tokens, or where the hook has run of these alone."""
        states = last_hidden.squeeze(0)
        return states if self._picked else states[self._predictor]


@contextmanager
def scoring_tokens(lm: PreTrainedModel, predictor: Tensor) -> Iterator[Scored]:
    """Within the block the model's last norm reads the tokens `predictor` `[S]`, where nothing follows it."""
    scored, name = Scored(predictor), last_norm(lm)
    if name is None:
        yield scored
        return
    handle = text_decoder(lm).get_submodule(name).register_forward_pre_hook(scored.before_norm)
    try:
        yield scored
    finally:
        handle.remove()


def last_norm(lm: PreTrainedModel) -> str | None:
    """The name in its decoder of the norm whose output are the last hidden states; None where they are another's."""
    # FSDP2 makes a class of its own of each.
    own = next(kind for kind in type(lm).__mro__ if not kind.__module__.startswith("torch."))
    return _last_norm(own, _Config(lm.config))


class _Config:
    """A configuration that is equal to another with the same values."""

    def __init__(self, config: Any) -> None:
        self.config, self._text = config, config.to_json_string()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Config) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


@cache
def _last_norm(model_class: type[PreTrainedModel], config: _Config) -> str | None:
    """On a small copy, with the library's attention."""
    try:
        decoder = text_decoder(build_small(model_class, config.config, dtype=torch.float32))
        norms = {
            name: child for name, child in decoder.named_children() if "norm" in type(child).__name__.lower()
        }
        outputs: dict[str, list[Any]] = {name: [] for name in norms}

        def noting(name: str) -> Any:
            return lambda module, args, output: outputs[name].append(output if len(args) == 1 else None)

        for name, norm in norms.items():
            norm.register_forward_hook(noting(name))
        with torch.no_grad():
            last = decoder(input_ids=torch.zeros(1, 3, dtype=torch.long), use_cache=False).last_hidden_state
    except Exception:  # a class that the small copy cannot be made of keeps the way that asks for nothing
        return None
    return next((name for name, made in outputs.items() if len(made) == 1 and made[0] is last), None)
