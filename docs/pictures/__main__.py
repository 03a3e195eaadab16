"""Draws every picture beside its module: `python -m docs.pictures [NAME …]`."""

from __future__ import annotations

import sys
from importlib import import_module

from docs.pictures.style import FOLDER, save

NAMES = ("attention", "shards", "memory", "speed")


def main(names: list[str]) -> None:
    """`NAME.svg` for each name, or for all."""
    for name in names or NAMES:
        save(import_module(f"docs.pictures.{name}").draw(), FOLDER / f"{name}.svg")


if __name__ == "__main__":
    main(sys.argv[1:])
