"""One sentence for a value that does not fit its key: which key, what it takes, and an example that can be typed."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_WORDS = {int: "whole number", float: "number", str: "text"}
_PLAIN = re.compile(r"[\w./-]+")  # a text that needs no quotes
_LENGTH = re.compile(r"(\d+)[kK]")
_NO_TEXT = re.compile(r"[+-]?[\d.]+(?:e[+-]?\d+)?|true|false|null", re.IGNORECASE)  # unless it is quoted


def wrong_type(values: Any, schema: type, group: str) -> str | None:
    """The sentence for the first value that OmegaConf does not take for its key; None where each is taken by itself.

    Args:
        values: the group as it was composed.
        schema: its dataclass.
        group: its name; "" for the top-level keys.
    """
    found = next(_misfits(values, schema, group), None)
    return None if found is None else misfit(*found)


def misfit(key: str, value: Any, hint: Any, default: Any = dataclasses.MISSING) -> str:
    """The sentence for one value.

    Args:
        key: its full name.
        value: what it was set to.
        hint: the type of the key.
        default: of the key, as an example; without one the type gives it.
    """
    whole, entry, inside = key.partition("[")
    example = _example(hint, value, default)
    if "." in inside:
        example = f"{inside.rpartition('.')[2]}: {example}"
    else:
        example = f"{whole}=[{example}]" if entry else f"{key}={example}"
    typed = f"'{example}'" if re.search(r"[\s{\[]", example) else example
    given = f"'{value}'" if isinstance(value, str) and _NO_TEXT.fullmatch(value) else shown(value)
    return f"{key}={given} has the wrong type: it takes {_taken(hint)}, as in {typed}."


def shown(value: Any) -> str:
    """A value as it is typed: `null`, `[a, 1]`, `{path: rows.jsonl}`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {shown(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)


def _misfits(values: Any, schema: type, group: str) -> Iterator[tuple[str, Any, Any, Any]]:
    """Key, value, type and default of all that does not fit, in the order of the schema."""
    hints = typing.get_type_hints(schema)
    plain = OmegaConf.to_container(values, resolve=False) if OmegaConf.is_config(values) else values
    if not isinstance(plain, Mapping):
        yield group, plain, schema, dataclasses.MISSING
        return
    for field in dataclasses.fields(schema):
        if field.name not in plain or plain[field.name] == "???":
            continue
        key = ".".join(part for part in (group, field.name) if part)
        hint, value = hints[field.name], plain[field.name]
        entry = _entry(hint)
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            yield from _misfits(value, typing.cast(type, hint), key)
        elif dataclasses.is_dataclass(entry) and isinstance(value, list):
            for i, each in enumerate(value):
                yield from _misfits(each, typing.cast(type, entry), f"{key}[{i}]")
        elif not _takes(schema, field.name, value):
            yield key, value, hint, field.default


def _takes(schema: type, name: str, value: Any) -> bool:
    """Whether OmegaConf takes the value for a field; a reference to another key is its own matter."""
    node: Any = OmegaConf.structured(schema)
    OmegaConf.set_readonly(node, False)
    try:
        OmegaConf.merge(node, DictConfig({name: value}))
    except OmegaConfBaseException:
        return False
    return True


def _entry(hint: Any) -> Any:
    """The type of a list's entries; None for what is no list."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is list else None


def _options(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _taken(hint: Any, *, many: bool = False) -> str:
    """In words what a key takes: `a whole number or null`, `a list of texts`, `the keys path, ratio`."""
    return " or ".join(_one(option, many=many) for option in _options(hint))


def _one(hint: Any, *, many: bool) -> str:
    if hint is types.NoneType:
        return "null"
    if hint is bool:
        return "true or false"
    if hint in _WORDS:
        return f"{_WORDS[hint]}s" if many else f"a {_WORDS[hint]}"
    if dataclasses.is_dataclass(hint):
        names = ", ".join(field.name for field in dataclasses.fields(hint))
        return f"mappings with the keys {names}" if many else f"a mapping with the keys {names}"
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return f"{'lists' if many else 'a list'} of {_taken(_options(arguments[0])[0], many=True)}"
    if typing.get_origin(hint) is dict:
        values = "values" if arguments[1] is Any else _taken(_options(arguments[1])[0], many=True)
        return f"{'mappings' if many else 'a mapping'} of names to {values}"
    return "values" if many else "a value"


def _example(hint: Any, value: Any, default: Any) -> str:
    """What may be typed in the place of a value, near to what was meant."""
    if isinstance(default, str | int | float) and _length(value) is None:
        return shown(default)
    first = next(option for option in _options(hint) if option is not types.NoneType)
    if first in (int, float):
        return str(_length(value) or 1)
    if first is bool:
        return "true"
    if first is str:
        return value if isinstance(value, str) and _PLAIN.fullmatch(value) else "TEXT"
    if dataclasses.is_dataclass(first):
        hints = typing.get_type_hints(first)
        given = value if isinstance(value, str) else None
        needed = [
            field
            for field in dataclasses.fields(first)
            if field.metadata.get("example")  # one of several of which an entry needs one
            or (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
        ]
        fields = needed or dataclasses.fields(first)[:1]
        inside = (f"{each.name}: {_example(hints[each.name], given, each.default)}" for each in fields)
        return "{" + ", ".join(inside) + "}"
    arguments = typing.get_args(first)
    if typing.get_origin(first) is list:
        return f"[{_example(arguments[0], value, dataclasses.MISSING)}]"
    return "{NAME: VALUE}"


def _length(value: Any) -> int | None:
    """8192 for `8k`, also as the entry of a list; None for anything else."""
    if isinstance(value, list) and value:
        value = value[0]
    found = _LENGTH.fullmatch(value) if isinstance(value, str) else None
    return int(found[1]) * 1024 if found else None
