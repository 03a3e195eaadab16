"""Token mixers that keep a state: how they are known, and the cache that they are called with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# A state's kind and number → its value: `("conv", 0)` the last inputs of a convolution, `("recurrent", 0)` a scan's.
State = dict[tuple[str, int], Tensor]

# What a forward asks of a cache that holds states, in transformers 5.
_ASKS = {"get_conv_state", "update_conv_state", "get_recurrent_state", "update_recurrent_state"}
_ASKS_LINEAR = {"get_linear_cache", "set_linear_cache"}
_CACHES = ("cache_params", "past_key_values")
# The keyword by which a scan over many tokens takes the state to start from.
_STARTS = ("initial_state", "initial_states")

_RUNS_AGAIN = "cannot start from a state and runs along the prompt again for each answer"
_STEPS = "reads an answer token by token from the prompt's state"


class SpanCache:
    """In the place of the library's cache: hands out the state before a span, and takes the one after it.

    Nothing is written in place, so that both stay in the graph. It is the cache of one mixer: layers' numbers, which
    the library tells it, are not needed.

    Args:
        before: the state that the mixer starts from; empty at a prompt's start.
    """

    def __init__(self, before: State) -> None:
        self.before: State = before
        self.after: State = {}

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """`[1, C, k]`, the inputs before the span; None where it starts."""
        return self.before.get(("conv", state_idx))

    def update_conv_state(
        self,
        conv_states: Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **others: Any,
    ) -> Tensor:
        """The span's inputs `[1, C, n]` with those before them; the last `conv_kernel_size` are kept for the next."""
        before = self.before.get(("conv", state_idx))
        whole = conv_states if before is None else torch.cat([before, conv_states], dim=-1)
        kept = conv_kernel_size or (conv_states if before is None else before).shape[-1]
        self.after["conv", state_idx] = whole[..., -kept:]
        return whole

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The scan's state before the span; None where it starts from nothing."""
        return self.before.get(("recurrent", state_idx))

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **others: Any
    ) -> Tensor:
        """Keeps the scan's state after the span."""
        self.after["recurrent", state_idx] = recurrent_states
        return recurrent_states

    def get_linear_cache(self, layer_idx: int) -> Tensor | None:
        """Lightning attention's name for the recurrent state."""
        return self.get_recurrent_state(layer_idx)

    def set_linear_cache(self, layer_idx: int, linear_cache: Tensor) -> None:
        """Lightning attention's name for it."""
        self.update_recurrent_state(linear_cache, layer_idx)

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether the span follows another."""
        return bool(self.before)

    def is_recording_past(self, layer_idx: int) -> bool:
        """True: it keeps the mixer off the path of generation, which writes states in place."""
        return True


@dataclass(frozen=True)
class MixerRule:
    """How a class of mixers is called.

    Attributes:
        parameters: of its forward, in order; the first takes the hidden states.
        cache: which of them takes the cache; None where the module holds its state itself.
        resumes: whether many tokens can follow a state; else only an empty one.
        cost: what that takes beyond one run along the row, as a sentence goes on behind the class's name.
    """

    parameters: tuple[str, ...]
    cache: str | None
    resumes: bool
    cost: str = ""

    def cache_keywords(self, states: SpanCache) -> dict[str, Any]:
        """What gives the mixer its cache, or none: `{"cache_params": states}`."""
        return {"use_cache": False} if self.cache is None else {self.cache: states}


def mixer_rule(kind: Any) -> MixerRule | None:
    """How to call a module of this class over spans; None where it is no mixer that keeps a state.

    Qwen3-Next's gated delta net takes `cache_params`, asks for both states and starts its scan from `initial_state`:
    `MixerRule(("hidden_states", "cache_params", "attention_mask"), "cache_params", resumes=True)`.
    """
    return _mixer_rule(kind)


def attends(kind: Any) -> bool:
    """Whether modules of this class take their attention from transformers' AttentionInterface."""
    return _attends(kind)


@cache
def _mixer_rule(kind: Any) -> MixerRule | None:
    if issubclass(kind, PreTrainedModel):
        return None
    parameters = _parameters(kind)
    codes = list(_codes(kind))
    names = {name for code in codes for name in code.co_names}
    caches = [name for name in _CACHES if name in parameters]
    if caches and names & _ASKS:
        starts = any(name in _STARTS for code in codes for name in _keywords(code))
        resumes = starts or "get_recurrent_state" not in names
        return MixerRule(parameters, caches[0], resumes, "" if resumes else _RUNS_AGAIN)
    if caches and names & _ASKS_LINEAR:
        return MixerRule(parameters, caches[0], resumes=True, cost=_STEPS)
    if hasattr(kind, "_setup_cache") and "use_cache" in parameters:  # RecurrentGemma's block is its own cache
        return MixerRule(parameters, None, resumes=False, cost=_RUNS_AGAIN)
    return None


@cache
def _attends(kind: Any) -> bool:
    return any("ALL_ATTENTION_FUNCTIONS" in code.co_names for code in _codes(kind))


def _parameters(kind: type[nn.Module]) -> tuple[str, ...]:
    """Names of the forward's parameters that have one, without `self`."""
    named = inspect.signature(inspect.unwrap(kind.forward)).parameters.values()
    return tuple(one.name for one in named if one.kind is one.POSITIONAL_OR_KEYWORD)[1:]


def _codes(kind: type[nn.Module]) -> Iterator[CodeType]:
    """The code of a class's forward, and of its own methods that the forward calls, at whatever remove."""
    waiting, seen = ["forward"], set()
    while waiting:
        name = waiting.pop()
        method = inspect.unwrap(getattr(kind, name)) if name not in seen else None
        seen.add(name)
        if inspect.isfunction(method) and method.__module__ != nn.Module.__module__:
            yield method.__code__
            waiting += [other for other in method.__code__.co_names if callable(getattr(kind, other, None))]


def _keywords(code: CodeType) -> Iterator[str]:
    """Names of the keywords that a piece of code calls functions with."""
    for constant in code.co_consts:
        if isinstance(constant, tuple):
            yield from (name for name in constant if isinstance(name, str))
