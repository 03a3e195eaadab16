"""Results that a person can read: `print(result)`, and a notebook, show a list of their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import groupby
from typing import Any

SHOWN = 10  # entries of a list that are shown
WIDTH = 100  # characters of a value that are shown


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`, `8 processes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def agreeing(number: int, one: str, several: str) -> str:
    """The verb that a counted noun has: `1 row is`, `2 rows are`."""
    return one if number == 1 else several


class Readable:
    """A dataclass whose `str` is a line a field; `repr` stays the dataclass's own.

    Mappings with the same keys that follow each other stand side by side, as `before` and `after` of training.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        """IPython asks each class by itself, and would find the dataclass's `__repr__` before an inherited name."""
        super().__init_subclass__(**keywords)
        cls._repr_pretty_ = Readable._show  # type: ignore[attr-defined]

    def __str__(self) -> str:
        return "\n".join([type(self).__name__, *(f"  {line}" for line in _lines(self))])

    def _show(self, printer: Any, cycle: bool) -> None:
        """What IPython shows of a value that ends a cell."""
        printer.text("…" if cycle else str(self))


def _lines(value: Any) -> list[str]:
    """The fields of a dataclass."""
    items = [(field.name, getattr(value, field.name)) for field in fields(value)]
    width = max(len(name) for name, _ in items)
    lines = []
    for keys, together in groupby(items, key=lambda item: _keys(item[1])):
        group = list(together)
        if keys:
            lines += _columns([name for name, _ in group], [entry for _, entry in group])
            continue
        for name, entry in group:
            if isinstance(entry, Sequence) and not isinstance(entry, str):
                lines.append(f"{name:<{width}}  {len(entry)}")
                lines += [f"  {_short(one)}" for one in entry[:SHOWN]]
                lines += [f"  … and {len(entry) - SHOWN} more"] * (len(entry) > SHOWN)
            else:
                lines.append(f"{name:<{width}}  {_short(entry)}")
    return lines


def _keys(value: Any) -> tuple[str, ...] | None:
    """The keys of a mapping; None of anything else."""
    return tuple(sorted(value)) if isinstance(value, Mapping) else None


def _columns(names: Sequence[str], mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Mappings of the same keys as a table; one is headed by its name alone."""
    cells = {key: [_short(mapping[key]) for mapping in mappings] for key in mappings[0]}
    first = max(map(len, cells)) + 2
    widths = [max(len(name), *(len(row[i]) for row in cells.values())) for i, name in enumerate(names)]
    if len(names) == 1:
        return [names[0], *(f"  {key:<{first}}{row[0]}" for key, row in cells.items())]
    head = "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    body = {
        key: "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for key, row in cells.items()
    }
    return [f"  {'':<{first}}{head}", *(f"  {key:<{first}}{row}" for key, row in body.items())]


def _short(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, float):
        text = f"{value:.4g}"
    elif is_dataclass(value) and type(value).__str__ in (object.__str__, Readable.__str__):
        text = ", ".join(f"{field.name} {_short(getattr(value, field.name))}" for field in fields(value))
    elif isinstance(value, Mapping):
        text = ", ".join(f"{key} {_short(entry)}" for key, entry in value.items())
    else:
        text = str(value)
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
