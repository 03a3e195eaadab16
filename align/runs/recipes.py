"""A recipe (`experiment=…`) sets its own method's loss; under another method those values would mean something else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

import hydra_conf
from align.core.errors import UserError

RECIPES = Path(hydra_conf.__file__).parent / "experiment"


def check_recipe(overrides: Iterable[str]) -> None:
    """Refuses `experiment=RECIPE method=OTHER` where the recipe sets the loss and the overrides leave that as it is.

    `experiment=logo_paper method=dpo` would train DPO with LOGO's β of 10.

    Args:
        overrides: a command's words.

    Raises:
        UserError: names the keys.
    """
    words = dict(word.partition("=")[::2] for word in overrides)
    recipe, methods = words.get("experiment", ""), words.get("method", "")
    file = RECIPES / f"{recipe}.yaml"
    if not methods or not file.is_file():
        return
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    own = _method_of(content)
    given = {name.lstrip("+") for name in words}
    left = [key for key in _keys(content.get("method", {}), "method") if key not in given]
    other = [name for name in methods.split(",") if name != own]
    if own is not None and other and left:
        raise UserError(
            f"experiment={recipe} is a recipe for method={own} and sets {', '.join(left)}, which method={other[0]} "
            "would take over: set these too, or start from another recipe."
        )


def _method_of(recipe: Mapping[str, Any]) -> str | None:
    """The method that a recipe's list of defaults chooses; None where it leaves the choice to the command."""
    groups = (each for each in recipe.get("defaults", ()) if isinstance(each, Mapping))
    return next((each["override /method"] for each in groups if "override /method" in each), None)


def _keys(node: Any, prefix: str) -> Iterator[str]:
    """Dotted keys of the values in a mapping."""
    if not isinstance(node, Mapping):
        yield prefix
        return
    for name, value in node.items():
        yield from _keys(value, f"{prefix}.{name}")
