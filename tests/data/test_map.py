"""The map of `align.data` names every module of it once."""

from __future__ import annotations

import pkgutil
import re

import align.data


def test_every_module_is_on_the_map() -> None:
    named = []
    for line in (align.data.__doc__ or "").splitlines():
        if line.startswith("    "):
            for part in re.split(r"; (?=[a-z_]+: )", line.strip()):
                named += part.split(":")[0].split(", ")
    assert sorted(named) == sorted(module.name for module in pkgutil.iter_modules(align.data.__path__))
