"""JSON Lines of the miniature, and the rows that a budget has room for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from align.core.files import write_atomically


def within_budget(
    made: Iterable[Mapping[str, Any]], *, rejected: str | None, budget: int
) -> Iterator[dict[str, Any]]:
    """Rows in their order until the next one would pass `budget` tokens of prompt, chosen and `rejected`."""
    used = 0
    for row in made:
        used += sum(row["tokens"][name] for name in ("prompt", "chosen", *([rejected] if rejected else [])))
        if used > budget:
            return
        answers = row[rejected] if rejected else []
        kept = {name: row[name] for name in ("id", "context", "question", "short_prompt", "chosen")}
        yield kept | {"rejected": answers if isinstance(answers, list) else [answers]}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON Lines, whole or not at all."""
    write_atomically(path, "".join(f"{json.dumps(dict(row), ensure_ascii=False)}\n" for row in rows))
