"""Typed settings out of the composed Hydra configuration: what is wrong ends here, before a model loads."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from align.core.errors import UserError
from align.core.wrong_types import misfit, wrong_type

Settings = TypeVar("Settings")


def typed(schema: type[Settings], config: DictConfig, group: str) -> Settings:
    """The node `config.<group>` as an instance of the dataclass `schema`; with group "" the top-level keys.

    Args:
        schema: a dataclass; its fields are the keys that the group may have.
        config: the composed configuration.
        group: the group's name, for messages.

    Raises:
        UserError: unknown key, value of the wrong type or a required value (`???`) that is not set.
    """
    node = OmegaConf.structured(schema)
    _set_writable(node)
    values: Any = None
    try:
        values = config[group] if group else OmegaConf.masked_copy(config, list(node))
        merged = OmegaConf.merge(node, values)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            key = _full_key(group, missing[0])
            raise UserError(f"{key} is not set: give it a value, {key}=….")
        return typing.cast(Settings, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        unknown = isinstance(error, ConfigKeyError)
        said = None if unknown else reference_sentence(error, group) or wrong_type(values, schema, group)
        raise UserError(said or _type_sentence(error, group, schema)) from error


# Keys beside the groups that several commands have: their types, and a value for an example.
_SHARED: Mapping[str, tuple[type, Any]] = {
    "output": (str, "outputs/mine"),
    "near_duplicate": (float, 0.8),
}


def check_shared(config: DictConfig) -> None:
    """The types of the keys beside the groups that every command reads in the same way.

    Raises:
        UserError: a value of the wrong type, or a seed that some library does not take.
    """
    if "seed" in config:
        check_seed(config.seed)
    for key, (kind, example) in _SHARED.items():
        value = None if OmegaConf.is_missing(config, key) else config.get(key)
        if value is not None and not _fits(value, kind):
            raise UserError(misfit(key, value, kind, example))


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Refuses a value that is none of `choices`, naming the key and the nearest choice."""
    names = list(choices)
    if value not in names:
        raise UserError(f"{key}={value} is not known: use {', '.join(names)}{suggestion(value, names)}.")


def check_seed(seed: Any) -> None:
    """Refuses a seed that some library of those that draw does not take: they share 0 … 2³² − 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is no seed: give a whole number from 0 to {2**32 - 1}.")


def check_arguments(
    values: Mapping[str, Any],
    schema: type,
    *,
    group: str,
    reserved: Mapping[str, str],
    library: str | None = None,
) -> None:
    """Checks keys and plain types of keywords that a library's dataclass will receive.

    Args:
        values: the keywords, e.g. the group `trainer`.
        schema: the library's dataclass, e.g. `transformers.TrainingArguments`.
        group: the group's name, for messages.
        reserved: keyword → the key of ours to use instead.
        library: who takes the keywords, for messages; None is the dataclass itself.

    Raises:
        UserError: unknown or reserved keyword, or a plain value of the wrong type.
    """
    hints = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema) if field.init}
    for name, value in values.items():
        if name in reserved:
            raise UserError(f"{group}.{name} is set by this toolkit: use {reserved[name]} instead.")
        if name not in fields:
            raise UserError(
                f"{group}.{name} is not known to {library or schema.__name__}{suggestion(name, fields)}."
            )
        if not _fits(value, hints[name]):
            raise UserError(misfit(f"{group}.{name}", value, hints[name], fields[name].default))


def _options(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows: plain ones, lists and mappings of them; empty where it holds anything else."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    return options if all(map(_is_checked, options)) else ()


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _is_checked(hint: Any) -> bool:
    if typing.get_origin(hint) in (list, dict):
        return all(_options(entry) for entry in typing.get_args(hint))
    return hint in (int, float, bool, str, types.NoneType)


def _fits(value: Any, hint: Any) -> bool:
    options = _options(hint)
    return not options or any(_is_a(value, option) for option in options)


def _is_a(value: Any, hint: Any) -> bool:
    kind, entries = typing.get_origin(hint), typing.get_args(hint)
    if kind is list:
        return isinstance(value, list) and all(_fits(entry, entries[0]) for entry in value)
    if kind is dict:
        return isinstance(value, dict) and all(
            _fits(name, entries[0]) and _fits(entry, entries[1]) for name, entry in value.items()
        )
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint) or (isinstance(value, int) and hint is float)


def suggestion(name: str, known: Iterable[str], *, group: str = "") -> str:
    """` (did you mean path?)` where a known name is near, else nothing; with its group before it, `data.path`."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {_full_key(group, close[0])}?)" if close else ""


def _set_writable(node: DictConfig) -> None:
    """OmegaConf marks frozen dataclasses read-only, which would refuse the merge."""
    OmegaConf.set_readonly(node, False)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _set_writable(child)


def _type_sentence(error: OmegaConfBaseException, group: str, schema: type) -> str:
    """OmegaConf's complaint as one sentence with the full key."""
    message = str(error).splitlines()[0].rstrip(".")
    unknown = re.match(r"Key '([^']+)' not in '(\w+)'", message)
    if unknown:
        return _unknown_key(unknown[1], unknown[2], group, schema)
    key = getattr(error, "full_key", None) or getattr(error, "key", None)
    entry = getattr(error, "object_type", None)
    for name, hint in typing.get_type_hints(schema).items():
        if entry is not None and entry in typing.get_args(
            hint
        ):  # in a list, OmegaConf names the entry's key alone
            key = f"{name}[…].{key}"
    return f"{_full_key(group, key)}: {message}."


def reference_sentence(error: BaseException, group: str = "") -> str | None:
    """What is wrong with a value that refers to another key, `${key}`; None for any other error."""
    if not isinstance(error, InterpolationResolutionError):
        return None
    said = str(error).splitlines()[0].rstrip(".")
    key = getattr(error, "full_key", None) or getattr(error, "key", None)
    return (
        f"{_full_key(group, key)} refers to something that cannot be found ({said}): ${{KEY}} stands for the value of "
        "another key, and a text that has it is written with \\${."
    )


def _unknown_key(name: str, owner: str, group: str, schema: type) -> str:
    """A key that a group, or one below it, does not have; `owner` is the name of its dataclass."""
    where, known = group, schema
    for field in dataclasses.fields(schema):
        hint = typing.get_type_hints(schema)[field.name]
        for below, mark in ((hint, ""), *((entry, "[…]") for entry in typing.get_args(hint))):
            if getattr(below, "__name__", None) == owner:
                where, known = f"{_full_key(group, field.name)}{mark}", below
    names = [field.name for field in dataclasses.fields(known)]
    return f"{_full_key(where, name)} is unknown{suggestion(name, names)}; the keys are {', '.join(names)}."


def _full_key(group: str, key: object) -> str:
    return ".".join(str(part) for part in (group, key) if part)
