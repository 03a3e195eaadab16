"""RoPE overrides: `model.rope` put into a configuration's `rope_parameters`, wrong combinations refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from align.core.config import check_choice
from align.core.errors import UserError
from align.models.text_part import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from align.models.settings import RopeSettings

# Type → the keys that it takes beside theta; `_NEEDED` have to be there, from here or from the checkpoint.
TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", "length"),
    "yarn": ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "table": ("table", "attention_factor"),
}
_NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor", "length"),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "table": ("table",),
}
_ANY_TYPE = ("type", "theta", "max_position_embeddings")
# What belongs to the architecture and outlives a change of type.
_KEPT = ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
_WINDOW = "original_max_position_embeddings"


def override_rope(config: PreTrainedConfig, rope: RopeSettings) -> None:
    """Puts `model.rope` into the text part's configuration, in place; keys that are None keep what the checkpoint has.

    `dynamic` (NTK-aware scaling by the longest position read so far) would make a log-prob depend on what a
    row is packed with and on the rows before it. Its frequencies are therefore held at one `length`:

        θ' = θ · (factor · length / window − (factor − 1))^(d / (d − 2)),   d the rotary dimensions of a head,

    which is plain RoPE with another base, and what dynamic RoPE computes for a sequence of that length.

    `table` takes the frequencies from an object (align/rope_tables) and stores them as LongRoPE's with equal lists.

    Raises:
        UserError: a key that the type does not take or lacks, a value out of range, a model without one
            rotary embedding for all layers.
    """
    given = {field.name: getattr(rope, field.name) for field in fields(rope)}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return
    config = text_config(config)
    before = _parameters(config)
    if "type" in given:
        check_choice("model.rope.type", given["type"], TYPES)
    kind = given.get("type", before["rope_type"])
    kept = before if kind == before["rope_type"] else {key: before[key] for key in _KEPT if key in before}
    _check_keys(given, kind, kept)
    after = {**kept, "rope_type": kind}
    after |= {
        name: value for name, value in given.items() if name in TYPES.get(kind, ()) and name != "length"
    }
    if "theta" in given:
        after["rope_theta"] = given["theta"]
    _check_values(given, after)
    if kind == "dynamic":
        after = _dynamic_at(config, after, given["length"])
    if kind in ("yarn", "table") and getattr(config, "head_dim", 0) is None:
        config.head_dim = _head_width(config)  # Mixtral leaves it open, and the library's functions read it
    window = before.get(_WINDOW, getattr(config, "max_position_embeddings", None))
    if "max_position_embeddings" in given:
        config.max_position_embeddings = given["max_position_embeddings"]
    if kind == "table":
        from align.models.rope_table import table_parameters  # imports numpy, which a start does without

        after = table_parameters(
            config,
            {key: after[key] for key in _KEPT if key in after},
            rope.table,
            dim=_rotary_dim(config, after),
            window=window,
            attention_factor=rope.attention_factor,
        )
    if kind == "table" or _WINDOW in TYPES.get(kind, ()):
        _set_original_window(config, window, after)
    config.rope_parameters = after


def rope_types(config: PreTrainedConfig) -> set[str]:
    """The RoPE types of the text part, those of layer types (Gemma) included; empty without RoPE."""
    return {str(node["rope_type"]) for node in _all_parameters(config) if "rope_type" in node}


def switches_by_length(config: PreTrainedConfig) -> bool:
    """Whether some layer has LongRoPE that picks one of two unlike lists by the longest position it is given.

    Equal lists (`model.rope.type=table`) leave nothing to pick: each position has one embedding in every row.
    """
    return any(
        node.get("rope_type") == "longrope" and node.get("short_factor") != node.get("long_factor")
        for node in _all_parameters(config)
    )


def _all_parameters(config: PreTrainedConfig) -> list[Mapping[str, Any]]:
    """The text part's rope_parameters, and those of each type of layer inside them."""
    parameters = getattr(text_config(config), "rope_parameters", None) or {}
    return [parameters, *(value for value in parameters.values() if isinstance(value, Mapping))]


def _parameters(config: PreTrainedConfig) -> dict[str, Any]:
    """The checkpoint's rope_parameters, one set for all layers."""
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise UserError(f"model.rope: {config.model_type} models have no rotary embedding to override.")
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise UserError(
            f"model.rope: {config.model_type} models have a rotary embedding for each type of layer, "
            "which cannot be overridden: leave model.rope unset."
        )
    return dict(parameters)


def _check_keys(given: Mapping[str, Any], kind: str, kept: Mapping[str, Any]) -> None:
    """Refuses a key that RoPE of type `kind` does not take, and one that it lacks."""
    takes = TYPES.get(kind, ())
    for name in given:
        if name not in takes and name not in _ANY_TYPE:
            fitting = [other for other, names in TYPES.items() if name in names]
            raise UserError(
                f"model.rope.{name} does not go with RoPE of type {kind}: "
                f"set model.rope.type to {' or '.join(fitting)}, or leave it out."
            )
    for name in _NEEDED.get(kind, ()):
        if name not in given and name not in kept:
            raise UserError(f"model.rope.type={kind} needs model.rope.{name}.")


def _check_values(given: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Refuses values that no rotary embedding can have."""
    for name, value in given.items():
        if name == "factor" and value < 1:
            raise UserError(f"model.rope.factor={value} has to be 1 or more: it stretches the window.")
        if name not in ("type", "table", "factor") and value <= 0:
            raise UserError(f"model.rope.{name}={value} has to be above 0.")
    for low, high, standard in (
        ("low_freq_factor", "high_freq_factor", (None, None)),
        ("beta_slow", "beta_fast", (1.0, 32.0)),
    ):
        pair = (after.get(low, standard[0]), after.get(high, standard[1]))
        if (low in given or high in given) and None not in pair and pair[0] >= pair[1]:
            raise UserError(f"model.rope.{low}={pair[0]} has to be below model.rope.{high}={pair[1]}.")


def _dynamic_at(config: PreTrainedConfig, parameters: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Plain RoPE with the base that dynamic RoPE reaches at `length` tokens."""
    window, factor = config.max_position_embeddings, parameters["factor"]
    if length <= window:
        raise UserError(
            f"model.rope.length={length} is within the checkpoint's window of {window} tokens, where dynamic RoPE "
            "changes nothing: set a longer one, or model.rope.type=default."
        )
    rotary = _rotary_dim(config, parameters)
    stretch = factor * length / window - (factor - 1)
    kept = {key: parameters[key] for key in _KEPT if key in parameters}
    return {
        **kept,
        "rope_type": "default",
        "rope_theta": parameters["rope_theta"] * stretch ** (rotary / (rotary - 2)),
    }


def _rotary_dim(config: PreTrainedConfig, parameters: Mapping[str, Any]) -> int:
    """d, the dimensions of a head that are rotated."""
    return int(_head_width(config) * parameters.get("partial_rotary_factor", 1.0))


def _head_width(config: PreTrainedConfig) -> int:
    """Dimensions of a head, as the configuration states them or its other sizes give them."""
    head = getattr(config, "head_dim", None)
    if head is not None:
        return int(head)
    hidden, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    if hidden is None or heads is None:
        raise UserError(
            f"model.rope: {config.model_type} models do not state how wide a head is, which these frequencies need: "
            "leave model.rope.type unset."
        )
    return int(hidden // heads)


def _set_original_window(config: PreTrainedConfig, window: int | None, after: dict[str, Any]) -> None:
    """The window of pre-training: as given, else what the checkpoint says of itself."""
    after.setdefault(_WINDOW, window)
    if hasattr(config, _WINDOW):  # Phi-3 states it outside too, and the library lets that one win
        setattr(config, _WINDOW, after[_WINDOW])
