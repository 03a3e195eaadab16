"""Layers that keep a state (gated delta nets, Mamba, lightning attention, short convolutions) on a shared prefix.

Such a layer mixes tokens by running along them. Its mixer, the module of the library that does it, is called here once
for the prompt, from an empty state, and once for each answer, from the state that the prompt left. The mixer's own
forward computes all of it; it only gets another cache than in generation, one that keeps the graph and writes nothing
in place. Everything else in the layer works token by token and sees the whole row.

As torch's `fully_shard`, this makes a subclass of the mixer's class and gives it to the module, so that names, state
dicts and adapters stay what they are. Without a layout, as in generation, its forward is the library's.

A mixer is known by what its forward asks of a cache, not by its name. Mamba-1's scan takes no state to start from
(the library's and its kernel's), so that such a mixer runs along prompt and answer together for each answer; its
layer's other parts still read the prompt once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers.modeling_layers import GradientCheckpointingLayer

from align.core.errors import UserError
from align.longseq.mixers import MixerRule, SpanCache, State, mixer_rule
from align.longseq.prepared import PreparedLayout
from align.longseq.shared_prefix import PackedPrompt, Span

# The layout of the row that the model is called for, and of the one that a decoder layer runs over: several models hand
# keywords on to their layers and no further, or not even there (Mamba).
_CALLED: ContextVar[PreparedLayout | None] = ContextVar("called_layout", default=None)
_HANDED: ContextVar[PreparedLayout | None] = ContextVar("handed_layout", default=None)
# The keyword by which a prepared decoder layer gets the former where its model hands it no `layout`.
_CALLED_LAYOUT = "called_layout"


class StateMixer:
    """Marks a mixer that has been prepared: mixed into its class."""


class _Handing:
    """Marks a decoder layer that hands its layout to the mixers in it."""


def prepare_states(model: nn.Module) -> None:
    """Has every mixer of the model that keeps a state run prompt and answers apart where there is a layout.

    Parameters, their names and what the model computes without a layout stay the same. A second time does nothing.

    Args:
        model: the causal language model, wrapped or not.
    """
    for layer, mixer in list(_unprepared(model, None)):
        _become(mixer, _running_spans)
        if layer is not None and not isinstance(layer, _Handing):
            _become(layer, _handing_down)


@contextmanager
def called_for(layout: PreparedLayout) -> Iterator[None]:
    """Within it the model's forward is that of the row with this layout."""
    token = _CALLED.set(layout)
    try:
        yield
    finally:
        _CALLED.reset(token)


def state_mixers(model: nn.Module) -> list[nn.Module]:
    """The model's mixers that have been prepared."""
    return [module for module in model.modules() if isinstance(module, StateMixer)]


def state_notices(model: nn.Module) -> list[str]:
    """A sentence for each class of the model's mixers, prepared or not, that costs more than one run along the row."""
    mixers = [*state_mixers(model), *(mixer for _, mixer in _unprepared(model, None))]
    kinds = {type(module).__name__: mixer_rule(type(module)) for module in mixers}
    return [
        f"{name} {rule.cost}: it costs more than other layers, which are run once for the row."
        for name, rule in kinds.items()
        if rule is not None and rule.cost
    ]


def count_spans(layout: PreparedLayout) -> int:
    """Prompts and answers of the row: how often a mixer runs in it. Two prompts with 3 and 2 answers: 7."""
    return sum(1 + len(packed.answers) for packed in layout.row.prompts)


def _unprepared(module: nn.Module, layer: nn.Module | None) -> Iterator[tuple[nn.Module | None, nn.Module]]:
    """The outermost mixers under `module`, and the outermost checkpointed layer that each is in."""
    if layer is None and isinstance(module, GradientCheckpointingLayer):
        layer = module
    for child in module.children():
        if isinstance(child, StateMixer):
            continue
        if mixer_rule(type(child)) is None:
            yield from _unprepared(child, layer)
        else:
            yield layer, child


def _become(module: nn.Module, subclass: Callable[[Any], Any]) -> None:
    module.__class__ = subclass(type(module))


@cache
def _handing_down(kind: Any) -> Any:
    """A subclass of a decoder layer's class that leaves its layout for the mixers in it, recomputed or not."""

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # A keyword, so that a checkpoint keeps it for the layer's recomputation.
        given = {} if {"layout", _CALLED_LAYOUT} & kwargs.keys() else {_CALLED_LAYOUT: _CALLED.get()}
        return kind.__call__(self, *args, **kwargs, **given)

    @wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        called = kwargs.pop(_CALLED_LAYOUT, None)
        token = _HANDED.set(kwargs.get("layout", called))
        try:
            return kind.forward(self, *args, **kwargs)
        finally:
            _HANDED.reset(token)

    return _subclass(kind, _Handing, forward=forward, __call__=call)


@cache
def _running_spans(kind: Any) -> Any:
    """A subclass of a mixer's class that runs prompt and answers apart."""
    rule = mixer_rule(kind)
    assert rule is not None

    @wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, layout: PreparedLayout | None = None, **kwargs: Any) -> Any:
        layout = layout or _HANDED.get()
        if layout is None:
            return kind.forward(self, *args, **kwargs)
        layout.callers.add(self)
        keywords = dict(zip(rule.parameters, args, strict=False)) | kwargs
        hidden = keywords.pop(rule.parameters[0])
        own = partial(kind.forward, self)
        return layout.mix(self, partial(_over_spans, own, rule, layout), hidden, keywords)

    return _subclass(kind, StateMixer, forward=forward)


def _subclass(kind: Any, mark: type, **methods: Callable[..., Any]) -> Any:
    """`kind` with other methods, under the same name: wrappers find layers by the names of their classes."""
    return type(kind.__name__, (mark, kind), {**methods, "__module__": kind.__module__})


class _Calls:
    """The calls of one mixer over one row; `forward(hidden, **keywords)` is the mixer's own."""

    def __init__(
        self, forward: Callable[..., Any], rule: MixerRule, hidden: Tensor, keywords: dict[str, Any]
    ) -> None:
        self.forward, self.rule, self.hidden, self.keywords = forward, rule, hidden, keywords
        self.made = 0
        self._outputs: list[tuple[int, Any]] = []

    def over(self, *spans: Span, before: State | None = None, drop: int = 0) -> State:
        """Runs the mixer along these spans, and takes its output for all of their tokens but the first `drop`.

        A single token behind a state is read twice and its second output dropped: for one token the library takes
        the path of generation, which writes states in place and has no gradient in some kernels.

        Returns:
            The state after the spans.
        """
        tokens = sum(stop - start for start, stop in spans)
        doubled = bool(before) and tokens == 1
        cut = partial(_cut, tokens=self.hidden.shape[1], spans=spans * (2 if doubled else 1))
        states = SpanCache(before or {})
        keywords = tree_map_only(Tensor, cut, self.keywords) | self.rule.cache_keywords(states)
        output = self.forward(cut(self.hidden), **keywords)
        take = partial(_take, read=tokens * (2 if doubled else 1), start=drop, stop=tokens)
        self._outputs.append((tokens - drop, tree_map_only(Tensor, take, output)))
        self.made += 1
        return states.after

    def joined(self) -> Any:
        """What was taken, in the order of the calls, in the form in which the mixer returns it.

        Of a tuple only tensors `[1, n, …]` of a span's n tokens are: any other is None.
        """
        tokens = [taken for taken, _ in self._outputs]
        outputs = [output for _, output in self._outputs]
        if isinstance(outputs[0], Tensor):
            return torch.cat(outputs, dim=1)
        return tuple(_join(parts, tokens) for parts in zip(*outputs, strict=True))


def _cut(states: Tensor, *, tokens: int, spans: tuple[Span, ...]) -> Tensor:
    """The spans of a tensor `[·, T, …]`; any other is returned as it is."""
    if states.dim() < 2 or states.shape[1] != tokens:
        return states
    pieces = [states[:, start:stop] for start, stop in spans]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _take(states: Tensor, *, read: int, start: int, stop: int) -> Tensor:
    """Tokens `start` … `stop` of a tensor `[·, read, …]`; any other is returned as it is."""
    return states[:, start:stop] if states.dim() >= 2 and states.shape[1] == read else states


def _join(parts: tuple[Any, ...], tokens: list[int]) -> Tensor | None:
    """Tensors of `tokens` each, one after the other; None where they are not that."""
    shapes = [part.shape[1] if isinstance(part, Tensor) and part.dim() >= 2 else None for part in parts]
    return torch.cat(parts, dim=1) if shapes == tokens else None


def _over_spans(
    forward: Callable[..., Any],
    rule: MixerRule,
    layout: PreparedLayout,
    hidden: Tensor,
    keywords: dict[str, Any],
) -> Any:
    """The mixer over a whole row, prompt and answers apart.

    Where modules gather weights, every process has to call them equally often: one with fewer spans than another
    adds calls on the row's last token, of whose output nothing is taken.

    Args:
        forward: the mixer's own.
        rule: how it is called.
        layout: of the row.
        hidden: `[1, T, H]`.
        keywords: what else the mixer was called with.

    Returns:
        What the mixer returns, of `[1, T, H]`.
    """
    tokens = hidden.shape[1]
    if tokens != layout.row.length:
        raise UserError(
            "This model has layers that keep a state, which run along the whole row and cannot be shared among "
            "processes: set parallel.degree=1."
        )
    calls = _Calls(forward, rule, hidden, keywords)
    run = _resume if rule.resumes else _run_again
    for packed in layout.row.prompts:
        run(calls, packed)
    for _ in range((layout.most_spans or 0) - calls.made):
        calls.over((tokens - 1, tokens), drop=1)
    return calls.joined()


def _resume(calls: _Calls, packed: PackedPrompt) -> None:
    """The prompt from an empty state, each answer from the state that it left."""
    state = calls.over(packed.prompt)
    for answer in packed.answers:
        calls.over(answer, before=state)


def _run_again(calls: _Calls, packed: PackedPrompt) -> None:
    """The same by a mixer that cannot start from a state: it runs along the prompt again for each answer."""
    prompt = packed.prompt[1] - packed.prompt[0]
    for place, answer in enumerate(packed.answers):
        calls.over(packed.prompt, answer, drop=prompt if place else 0)
    if not packed.answers:
        calls.over(packed.prompt)
