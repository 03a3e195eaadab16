"""Names of a package that are imported when they are first used, so that the package itself costs nothing."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from align.core.errors import MovedWarning


def lazy_names(
    package: str, places: Mapping[str, tuple[str, str | None]], *, renamed: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package: its `__name__`.
        places: name → module and the name in it: `{"pack": ("align.longseq.shared_prefix", "pack")}`; None is the
            module itself.
        renamed: old name → name in `places`: accepted for one release, with a sentence.
    """

    def find(name: str) -> Any:
        if renamed is not None and name in renamed:
            warnings.warn(
                f"{package}.{name} is called {renamed[name]} now; the old name goes with the next release.",
                MovedWarning,
                stacklevel=2,
            )
            name = renamed[name]
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = places[name]
        found = importlib.import_module(module)
        return found if attribute is None else getattr(found, attribute)

    def names() -> list[str]:
        return sorted(places)

    return find, names
