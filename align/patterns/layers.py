"""Which layers and heads of a model have which pattern: the group `attention`, and what a configuration keeps of it.

A choice is part of how a model is read: of the policy, its reference and whatever answers or is measured. So it stands
in the model's configuration under `KEY`, from where the attention functions take it, and from where config.json carries
it on to whoever reads the checkpoint next: the group's keys in plain values, `{"_target_": …, "size": 512, …}`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from align.core.config import check_choice
from align.core.errors import UserError
from align.core.instantiate import allowed, instantiate
from align.patterns.by_head import ByHead
from align.patterns.native import native_patterns
from align.patterns.pattern import FULL, Pattern

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

KEY = "layer_patterns"  # of a text model's configuration, and of its config.json
SAME, FULL_ATTENTION = "same", "full"
EVALUATE = (SAME, FULL_ATTENTION)  # of `attention.evaluate`


class LayerPatterns(Protocol):
    """A choice of the group `attention`: a frozen dataclass whose fields are the group's keys.

    Attributes:
        evaluate: `same`: held-out rows, suites and answers are read with these patterns too, and so is the saved model;
            `full`: only training rows are, and the saved model has full attention.
    """

    evaluate: str

    def check(self) -> None:
        """Raises UserError for values out of range."""
        ...

    def fit(self, *, layers: int) -> None:
        """Raises UserError for a model with so many layers that the choice is not for."""
        ...

    def at(self, layer: int, *, layers: int, heads: int) -> Pattern | ByHead:
        """The pattern of a layer, from 0 on, of a model with so many layers and query heads."""
        ...


@dataclass(frozen=True)
class Chosen:
    """A choice and the keys that it was made of, which a configuration keeps; `evaluate` is always among them."""

    patterns: LayerPatterns
    keys: Mapping[str, Any]

    @classmethod
    def of(cls, patterns: LayerPatterns, keys: Mapping[str, Any]) -> Chosen:
        """With the `evaluate` of a class that has it by default."""
        return cls(patterns, {**keys, "evaluate": patterns.evaluate})


def check_evaluate(evaluate: str) -> None:
    """Refuses a word that `attention.evaluate` does not take."""
    check_choice("attention.evaluate", evaluate, EVALUATE)


def keep_patterns(config: PreTrainedConfig, chosen: Chosen | None) -> None:
    """Puts a choice into a text model's configuration, in place; None keeps what its checkpoint says.

    A checkpoint whose patterns were for training alone has full attention.

    Raises:
        UserError: a model whose layers have windows of their own; a checkpoint that names patterns of another package,
            or wrong keys.
    """
    if chosen is not None:
        _BUILT[_name(chosen.keys)] = chosen.patterns
        setattr(config, KEY, dict(chosen.keys))
    elif (getattr(config, KEY, None) or {}).get("evaluate") == FULL_ATTENTION:
        delattr(config, KEY)
    if getattr(config, KEY, None) is not None:
        _check_fits(config)


def patterns_of_run(config: Mapping[str, Any], *, allow: Sequence[str]) -> Chosen | None:
    """What a run's whole configuration chose for more than training; None where its model has full attention.

    Args:
        config: of the run, in plain values.
        allow: packages that patterns may come from. What the run's own configuration says about it does not count.

    Raises:
        UserError: patterns of another package, or wrong keys.
    """
    keys = config.get("attention") or {}
    if keys.get("_target_") is None or keys.get("evaluate") == FULL_ATTENTION:
        return None
    patterns: LayerPatterns = instantiate(keys, allow=allow, where="config.yaml: attention", kind="attention")
    patterns.check()
    return Chosen.of(patterns, keys)


def patterns_words(config: Any) -> str | None:
    """What is said of a model that is read with chosen patterns; None of one that has none.

    "Attention by patterns, in training alone: Window(size=2048, sinks=64) in 20, Full() in 10 of 30 layers."
    """
    patterns = patterns_of(config)
    if patterns is None:
        return None
    found = Counter(str(pattern) for pattern in attention_patterns(config) if pattern is not None)
    layers = ", ".join(f"{name} in {count}" for name, count in found.items())
    alone = patterns.evaluate == FULL_ATTENTION
    where = "in training alone" if alone else "in training, in evaluation and in the saved model"
    return f"Attention by patterns, {where}: {layers} of {sum(found.values())} layers."


def patterns_of(config: Any) -> LayerPatterns | None:
    """The choice that a text model is read with here and now; None where layers are as its architecture has them.

    Args:
        config: of the text model, or None where a module has none.
    """
    if getattr(config, KEY, None) is None:
        return None
    patterns = _built(config)
    return None if _EVALUATING and patterns.evaluate == FULL_ATTENTION else patterns


def attention_patterns(config: Any) -> tuple[Pattern | ByHead | None, ...]:
    """The pattern of every layer of a text model, chosen or its own; None of a layer without attention."""
    native, patterns = native_patterns(config), patterns_of(config)
    if patterns is None:
        return native
    heads = config.num_attention_heads
    return tuple(
        None if own is None else patterns.at(layer, layers=len(native), heads=heads)
        for layer, own in enumerate(native)
    )


@contextmanager
def evaluating_patterns() -> Iterator[None]:
    """Within it rows are read as for evaluation: `attention.evaluate=full` has full attention.

    For forward passes without gradients; of all threads of the process.
    """
    _EVALUATING.append(True)
    try:
        yield
    finally:
        _EVALUATING.pop()


def limit_of(config: Any) -> int | None:
    """Positions that first tokens outside the window are away at most; None as far as they are."""
    patterns = patterns_of(config)
    limit: int | None = getattr(patterns, "limit", None)
    return limit


def as_read(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's plain values without the patterns that nothing is read with here and now."""
    kept = {
        name: as_read(value) if isinstance(value, Mapping) and name != KEY else value
        for name, value in values.items()
    }
    keys = kept.get(KEY)
    if keys is None or (_EVALUATING and keys.get("evaluate") == FULL_ATTENTION):
        kept.pop(KEY, None)
    return kept


def _check_fits(config: Any) -> None:
    """Refuses a choice for a model that has patterns of its own, and one that its layers or heads do not fit."""
    own = sorted({str(pattern) for pattern in native_patterns(config) if pattern not in (FULL, None)})
    if own:
        raise UserError(
            f"attention: {config.model_type} models have patterns of their own in some layers ({', '.join(own)}), "
            "which no choice replaces: set attention=own."
        )
    _built(config).fit(layers=config.num_hidden_layers)


def _built(config: Any) -> LayerPatterns:
    """The object that a configuration's keys describe; of this project alone, where nobody has chosen it here."""
    keys = getattr(config, KEY)
    name = _name(keys)
    if name not in _BUILT and not allowed(str(keys.get("_target_")), ("align",)):
        raise UserError(
            f"The model's config.json names attention patterns of another package ({keys.get('_target_')}): name them "
            "yourself, attention=NAME allow_targets=[PACKAGE], or set attention=full."
        )
    if name not in _BUILT:
        built: LayerPatterns = instantiate(
            keys, allow=("align",), where=f"config.json: {KEY}", kind="attention"
        )
        built.check()
        _BUILT[name] = built
    return _BUILT[name]


_BUILT: dict[str, LayerPatterns] = {}
_EVALUATING: list[bool] = []  # one entry for each `evaluating_patterns` that is open


def _name(keys: Mapping[str, Any]) -> str:
    """What stands for a choice's keys."""
    return json.dumps(keys, sort_keys=True)
