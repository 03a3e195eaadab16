"""The rows that docs/data.md shows are rows: each is read, holds no leak, and is of a layout of the table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from align.data.files import RawRow
from align.data.formats import parse_row
from align.data.provenance import leaks

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCK = re.search(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
ROWS = [] if BLOCK is None else BLOCK[1].splitlines()


def test_there_are_rows() -> None:
    assert len(ROWS) >= 8


@pytest.mark.parametrize("line", ROWS)
def test_a_row_of_the_page_is_read(line: str) -> None:
    values = json.loads(line)
    parsed = parse_row(RawRow(0, "data.md:1", values))
    assert parsed.unread == () and parsed.dropped == 0
    assert not list(leaks(values))
