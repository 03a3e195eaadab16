"""The norm behind the last layer runs on the tokens that are scored, a slice at a time with the head.

A norm computes in float32, and its backward pass keeps several tensors as long as what it reads. Over a row of 131,072
tokens that is more than a layer needs. It works token by token, and so it goes with the head, which reads a slice of
the scored tokens at a time and is run again in the backward pass. Whether a decoder ends in its norm is found out on a
small copy of it, once for each configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.longseq.small_model import build_small
from align.models.text_part import text_decoder

Head = Callable[[Tensor], Tensor]


class Scored:
    """The hidden states of the scored tokens, and what makes logits of them.

    Args:
        predictor: `[S]` places of the scored tokens in the row.
        norm: the decoder's last, whose output are the last hidden states; None leaves it where it is.
    """

    def __init__(self, predictor: Tensor, norm: nn.Module | None) -> None:
        self._predictor, self._norm = predictor, norm
        self._states: Tensor | None = None
        self._in_decoder = True

    def before_norm(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hook ahead of the norm, which reads none of `[1, T, H]` in the decoder; later calls are the head's."""
        if not self._in_decoder:
            return args
        self._in_decoder = False
        (hidden,) = args
        # A view and one choice: the backward pass makes no other tensor as long as the row.
        self._states = hidden.squeeze(0)[self._predictor]
        return (hidden[:, :0],)

    def of(self, last_hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
        """`[S, H]` and the function from some of them `[n, H]` to logits `[n, V]`."""
        states, norm = self._states, self._norm
        if states is None or norm is None:
            return last_hidden[0, self._predictor], head
        self._states = None
        return states, lambda slice_: head(norm(slice_[None])[0])


@contextmanager
def scoring_tokens(lm: PreTrainedModel, predictor: Tensor) -> Iterator[Scored]:
    """Within the block the model's last norm waits for the head, where nothing stands between both."""
    name = last_norm(lm)
    if name is None:
        yield Scored(predictor, None)
        return
    norm = text_decoder(lm).get_submodule(name)
    scored = Scored(predictor, norm)
    handle = norm.register_forward_pre_hook(scored.before_norm)
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
