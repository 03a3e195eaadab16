"""Names of a package that are imported when they are first used, so that the package itself costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from align.core.moved import renamed


def lazy_names(
    package: str, places: Mapping[str, tuple[str, str | None]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package: its `__name__`.
        places: name → module and the name in it: `{"pack": ("align.longseq.shared_prefix", "pack")}`; None is the
            module itself.
    """

    def find(name: str) -> Any:
        if name not in places:
            return renamed(package, name)
        module, attribute = places[name]
        found = importlib.import_module(module)
        return found if attribute is None else getattr(found, attribute)

    def names() -> list[str]:
        return sorted(places)

    return find, names
