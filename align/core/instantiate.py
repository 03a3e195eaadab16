"""Objects from configuration, from named packages only: `_target_` may run whatever it names."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from align.core.config import check_arguments, suggestion
from align.core.errors import UserError, first_line
from align.core.static import read_parameters
from align.core.targets import KINDS, target_problem

# What a node has beside the callable's own arguments; Hydra's `_recursive_` and `_convert_` would have no use here.
_NODE_KEYS = {"_target_", "_partial_", "_args_"}


def instantiate(
    config: Any, *, allow: Sequence[str], where: str = "configuration", kind: str | None = None
) -> Any:
    """What `config` describes, nested `_target_`s included, if all of them may be called where they stand.

    Every `_target_` is checked before any is imported, and every one is found and checked before any is called. What
    was checked is what is called: nothing is resolved or looked up a second time.

    Args:
        config: a mapping with `_target_` (DictConfig or plain), interpolations resolved here.
        allow: names that targets may have: `losses` stands for `losses` itself and all `losses.…`. A target
            has to be defined there too: what an allowed module merely imports is refused. Of `align` only what
            `targets.KINDS` names is called.
        where: the key of `config`, for messages: `method.loss`.
        kind: what `config` itself has to be, of `KINDS`; None where it may be any. What stands below it is told by
            its own key: `pipeline.scorer`.

    Raises:
        UserError: a refused, missing or unknown target; a key that the target does not take; an
            interpolation that leads nowhere; a target that rejects its arguments.
    """
    nodes = _nodes(config, where)
    for node, key in nodes:
        _check_name(node["_target_"], allow, key)
    found = {id(node): _check_call(node, allow, key, _kind(key, where, kind)) for node, key in nodes}
    try:
        return _built(nodes[0][0], found)
    except UserError:
        raise
    except Exception as error:  # of a class of the user's, whatever it is
        raise UserError(f"{where}: {first_line(error)}") from error


def _built(value: Any, found: Mapping[int, Callable[..., Any]]) -> Any:
    """The plain `value` with an object in place of every node that has a `_target_`, the innermost first."""
    if isinstance(value, list):
        return [_built(entry, found) for entry in value]
    if not isinstance(value, dict):
        return value
    built = {name: _built(entry, found) for name, entry in value.items() if name not in _NODE_KEYS}
    if "_target_" not in value:
        return built
    arguments = _built(value.get("_args_", []), found)
    target = found[id(value)]
    return partial(target, *arguments, **built) if value.get("_partial_") else target(*arguments, **built)


def _kind(key: str, where: str, kind: str | None) -> str | None:
    """Of `KINDS`, what a key takes; None for one that takes any."""
    if key == where:
        return kind
    name = re.sub(r"(\[\d+\])+$", "", key).rpartition(".")[2]
    return name if name in KINDS else None


def check_targets(config: Any, *, allow: Sequence[str], where: str) -> None:
    """What `instantiate` would refuse, as far as names and sources tell: nothing is imported.

    Args:
        config, allow, where: as `instantiate`.

    Raises:
        UserError: no `_target_`, a refused one, a key that a function does not take, text where it asks for a number.
    """
    nodes = _nodes(config, where)
    for node, key in nodes:
        _check_name(node["_target_"], allow, key)
    for node, key in nodes:
        parameters = read_parameters(node["_target_"])
        if parameters is None:
            continue  # only an import tells, and `instantiate` makes it
        for name in sorted(node.keys() & parameters.numbers):
            _check_number(node[name], f"{key}.{name}")
        if not parameters.any_keyword:
            _check_known(node, parameters.names, parameters.keyword_only, key)


def build(config: DictConfig, group: str, *, kind: str | None = None) -> Any:
    """The dataclass that a group's `_target_` names, its values' types and ranges checked.

    Args:
        config: a command's whole configuration; its `allow_targets` are allowed beside `align`.
        group: dotted: `suite`, `suites.needles`.
        kind: of `targets.KINDS`; None is the group's own name.

    Raises:
        UserError: as `instantiate`; a value of the wrong type or out of range.
    """
    node = OmegaConf.select(config, group)
    built = instantiate(node, allow=("align", *config.allow_targets), where=group, kind=kind or group)
    values = {item.name: getattr(built, item.name) for item in dataclasses.fields(built)}
    check_arguments(values, type(built), group=group, reserved={})
    built.check()
    return built


def allowed(name: str, allow: Sequence[str]) -> bool:
    """Whether a dotted name is one of `allow` or lies inside it: `losses` allows `losses.x`, not `losses_x`."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in allow)


def _nodes(config: Any, where: str) -> list[tuple[dict[str, Any], str]]:
    """Every node with a `_target_`, in plain values, with its key; `config` itself first."""
    plain: Any = config
    try:
        if _is_plain(config) or OmegaConf.is_config(config):
            node = OmegaConf.create(config) if _is_plain(config) else config
            plain = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {first_line(error)}") from error
    if not isinstance(plain, dict) or "_target_" not in plain:
        raise UserError(f"{where} needs a `_target_`: the dotted name of what to call")
    return _targets(plain, where)


def _check_known(
    node: Mapping[str, Any], names: Sequence[str], keyword_only: Sequence[str], key: str
) -> None:
    """Refuses a key that the target does not take; what is called later gets the rest by position."""
    shown = keyword_only if node.get("_partial_") and keyword_only else names
    for given in sorted(node.keys() - _NODE_KEYS - set(names)):
        raise UserError(
            f"{key}.{given} is unknown{suggestion(given, shown)}; {node['_target_']} takes {', '.join(shown)}"
        )


def _is_plain(config: Any) -> bool:
    return isinstance(config, Mapping) and not OmegaConf.is_config(config)


def _targets(config: Any, key: str) -> list[tuple[dict[str, Any], str]]:
    """Every node with a `_target_`, at any depth, with its key."""
    if isinstance(config, list):
        return [found for i, value in enumerate(config) for found in _targets(value, f"{key}[{i}]")]
    if not isinstance(config, dict):
        return []
    here = [(config, key)] if "_target_" in config else []
    for name in config if here else ():
        if str(name).startswith("_") and str(name).endswith("_") and name not in _NODE_KEYS:
            raise UserError(
                f"{key}.{name} is unknown; beside arguments stand {', '.join(sorted(_NODE_KEYS))}"
            )
    if here and not isinstance(config.get("_args_", []), list):
        raise UserError(f"{key}._args_={config['_args_']} has to be a list")
    return here + [found for name, value in config.items() for found in _targets(value, f"{key}.{name}")]


def _check_name(target: Any, allow: Sequence[str], key: str) -> None:
    """Refuses a target outside `allow` by its name alone: nothing is imported."""
    if not isinstance(target, str) or not allowed(target, allow):
        raise UserError(
            f"{key}._target_={target} is refused; targets come from {', '.join(allow)}, "
            "and `allow_targets=[my_package]` adds a package of yours"
        )


def _check_call(node: dict[str, Any], allow: Sequence[str], key: str, kind: str | None) -> Callable[..., Any]:
    """Finds the target, refuses what may not be called there, and names a key that it does not take."""
    name = node["_target_"]
    target = _find(name, key)
    defined_in = getattr(target, "__module__", None)
    if not callable(target) or not allowed(str(defined_in), allow):
        raise UserError(
            f"{key}._target_={name} is refused: it is no function or class of {', '.join(allow)}"
            + (f" but of {defined_in}, which `allow_targets` may name" if callable(target) else "")
        )
    problem = target_problem(target, node, kind)
    if problem is not None:
        raise UserError(f"{key}._target_={name} is refused: {problem}.")
    parameters = inspect.signature(target).parameters
    for given in node.keys() & parameters.keys():
        if parameters[given].annotation in (float, int, "float", "int"):
            _check_number(node[given], f"{key}.{given}")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return target
    keyword_only = [name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY]
    _check_known(node, tuple(parameters), keyword_only, key)
    return target


def _check_number(value: Any, key: str) -> None:
    """Refuses text or nothing where a number is asked for."""
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise UserError(f"{key}={'null' if value is None else value} has to be a number")


def _find(name: str, key: str) -> Any:
    """The object of a dotted name."""
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{key}._target_={name}: no package {package} can be imported; install it or set PYTHONPATH"
        )
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}._target_={name} cannot be loaded: {first_line(error)}") from error
