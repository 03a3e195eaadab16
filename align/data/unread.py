"""Columns that are there and that nobody reads, and scores that say the rejected answer is the better one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from align.core.readable import counted
from align.data.columns import Columns
from align.data.near_names import in_settings
from align.data.renaming import CHECKED
from align.data.totals import column_of, lengths_of

if TYPE_CHECKING:
    from datasets import Dataset

    from align.data.dataset import PreferenceData
    from align.data.files import RawRow

SHOWN = 8  # columns that are named
MANY = 64  # of one row that are counted


def unread_names(columns: Columns, row: RawRow) -> list[str]:
    """The columns of a row that hold something and were not read.

    Left out are a row's `id`, what the checks of `align inspect` read, and what `align synthesize` records.
    """
    settings = columns.values.get("settings")
    if isinstance(settings, Mapping) and "pipeline" in settings:  # a pipeline of ours has made the row
        return []
    left = [
        name
        for name, value in columns.values.items()
        if name not in columns.read and not _is_empty(value) and name not in CHECKED
    ]
    return [name for name in (*left, *row.unseen) if name != "id"]


def _is_empty(value: Any) -> bool:
    return value in ("", [], {}) or (isinstance(value, str) and not value.strip())


def stored_names(names: Iterable[str]) -> str:
    """Names as one stored text: a row has few, and most rows the same."""
    kept = sorted(set(names))[:MANY]
    return json.dumps(kept) if kept else ""


def count_unread(rows: Iterable[Dataset]) -> Counter[str]:
    """Column → rows that hold something in it which nobody reads."""
    counts: Counter[str] = Counter()
    for dataset in rows:
        for one in pc.value_counts(column_of(dataset, "unread")).to_pylist():
            for name in json.loads(one["values"] or "[]"):
                counts[name] += one["counts"]
    return counts


def unread_notices(data: PreferenceData) -> list[str]:
    """What is said of columns that nobody reads and of scores that contradict their pair."""
    both = [data.train] if data.eval is None else [data.train, data.eval]
    counts, said = count_unread(both), []
    if counts:
        named = [f"{_told(name)} ({counted(count, 'row')})" for name, count in counts.most_common(SHOWN)]
        more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
        said.append(f"Not read: {', '.join(named)}{more}.")
    found = [one for rows in both for one in upside_down_rows(rows)]
    if found:
        where, why = found[0]
        said.append(
            f"Scores of {len(found)} of {counted(data.counts['rows'], 'row')} say that the rejected answer is the "
            f"better one (the first is {where}: {why}); pairs are trained on as they stand."
        )
    return said


def _told(name: str) -> str:
    """A column's name; pandas' to_csv writes its index under none."""
    return in_settings(name) if name.strip() else "a column without a name"


def upside_down_rows(rows: Dataset) -> list[tuple[str, str]]:
    """Where scores say that the rejected answer is better, and which."""
    scores = column_of(rows, "scores")
    places = pc.indices_nonzero(pc.not_equal(scores, "")).to_pylist()
    sources = rows.select_columns(["source"])
    return [(str(sources[place]["source"]), scores[place].as_py()) for place in places]


def unused_short(data: PreferenceData) -> list[str]:
    """What is said of short contexts under a method that reads none."""
    both = [data.train] if data.eval is None else [data.train, data.eval]
    count = sum(
        int(pc.sum(pc.greater(lengths_of(rows, "short_prompt_lengths"), 0)).as_py() or 0) for rows in both
    )
    if not count:
        return []
    return [
        f"This method does not read the short contexts (short_prompt, short_prompts) of {counted(count, 'row')}."
    ]
