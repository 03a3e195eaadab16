"""A function's parameters read from its source, without importing the module: an import of torch takes a second.

`losses.logo_loss` is found in `losses/__init__.py`, followed to `losses/logo.py`, and its `def` says what it takes.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path

_NUMBERS = {"float", "int"}


@dataclass(frozen=True)
class Parameters:
    """What a function or class takes by keyword.

    Attributes:
        names: in their order.
        keyword_only: those that only a keyword can give.
        numbers: those annotated as `float` or `int`.
        any_keyword: whether it has `**kwargs`.
    """

    names: tuple[str, ...]
    keyword_only: tuple[str, ...]
    numbers: frozenset[str]
    any_keyword: bool


def read_parameters(target: str) -> Parameters | None:
    """The parameters of the function with a dotted name; None where its source does not say.

    Nothing is imported or run. None also stands for a class, a name that is computed, or a module without source.
    """
    module, _, name = target.rpartition(".")
    path = _source_of(module)
    seen: set[tuple[Path, str]] = set()
    while path is not None and (path, name) not in seen:
        seen.add((path, name))
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError):
            return None
        found = _find(tree, name)
        if isinstance(found, ast.FunctionDef):
            return _parameters(found)
        if found is None:
            return None
        module, name = found
        path = _source_of(module)
    return None


def _find(tree: ast.Module, name: str) -> ast.FunctionDef | tuple[str, str] | None:
    """The top-level function of that name, or the module and name that it is imported from."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return node.module, alias.name
    return None


def _source_of(module: str) -> Path | None:
    """The file of a module; only its outermost package is looked up, which imports nothing."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first) if first else None
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    if not spec.submodule_search_locations:
        return None if rest else Path(spec.origin)
    place = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    candidates = (place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


def _parameters(node: ast.FunctionDef) -> Parameters:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    numbers = {
        argument.arg
        for argument in arguments
        if argument.annotation is not None and ast.unparse(argument.annotation) in _NUMBERS
    }
    return Parameters(
        names=tuple(argument.arg for argument in arguments),
        keyword_only=tuple(argument.arg for argument in node.args.kwonlyargs),
        numbers=frozenset(numbers),
        any_keyword=node.args.kwarg is not None,
    )
