"""`data.columns`: other names for the columns of rows, and which columns of a table are read at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from align.core.config import suggestion
from align.core.errors import UserError
from align.data import faults
from align.data.answer_scores import is_score
from align.data.faults import RowError
from align.data.files import RawRow
from align.data.layout_columns import LAYOUT_COLUMNS
from align.data.near_names import may_be

# Columns that are read for the checks of `align inspect`.
CHECKED = ("asked_of", "chunks", "chosen_chunks", "rejected_chunks", "rejected_kinds")
_READ = frozenset((*LAYOUT_COLUMNS, *CHECKED))
_RELEASED = re.compile(r"(ref_)?(chosen|rejected|reject_\d+)_(input_ids|attention_mask|position_ids|labels)")
PEEKED = 100  # rows in which a column that is named has to be found


@dataclass(frozen=True)
class Renaming:
    """`data.columns`: our column → the rows' column, or null, which hides it.

    With `{prompt: question}` a row's `question` is read as its prompt, and what it has under `prompt` is not read.
    """

    columns: tuple[tuple[str, str | None], ...] = ()
    key: str = "data.columns"

    @classmethod
    def of(cls, columns: Mapping[str, str | None] | None, key: str = "data.columns") -> Renaming:
        """From the setting."""
        return cls(tuple((columns or {}).items()), key)

    def names(self) -> set[str]:
        """Every column that is named on either side."""
        return {ours for ours, _ in self.columns} | {
            theirs for _, theirs in self.columns if theirs is not None
        }

    def wanted(self, more: Iterable[str] = ()) -> Callable[[str], bool]:
        """Which columns of a table are read, with `more` under the rows' own names (`numbers.wanted_columns`)."""
        return _Wanted(
            frozenset(ours for ours, _ in self.columns),
            frozenset((*(theirs for _, theirs in self.columns if theirs is not None), *more)),
        )

    def __call__(self, values: dict[str, Any]) -> dict[str, Any]:
        """A row's columns under our names."""
        if not self.columns:
            return values
        moved = self.names()
        kept = {name: value for name, value in values.items() if name not in moved}
        found = {
            ours: values[theirs] for ours, theirs in self.columns if theirs is not None and theirs in values
        }
        return kept | found

    def check(self, rows: Iterator[RawRow | RowError], place: str) -> list[str]:
        """Holds the names against the first rows.

        Args:
            rows: of one place, as they were read.
            place: what names it, for messages: `data.path=rows.jsonl`.

        Returns:
            sentences on columns that are there and are not read.

        Raises:
            UserError: none of the first rows has a column that is named.
        """
        if not self.columns:
            return []
        first: Sequence[RawRow | RowError] = list(islice(rows, PEEKED))
        seen = {name: None for row in first if isinstance(row, RawRow) for name in (*row.values, *row.unseen)}
        if not seen:
            return []
        for ours, theirs in self.columns:
            hidden = theirs is None and ours not in LAYOUT_COLUMNS
            named = ours if hidden else theirs
            if named is not None and named not in seen:
                given = "null" if theirs is None else theirs
                raise UserError(
                    f"{self.key}.{ours}={given}: no such column in the first {len(first)} rows of {place}, "
                    f"which have {', '.join(seen)}{suggestion(named, seen)}."
                )
        used = {theirs for _, theirs in self.columns}
        return [
            f"{self.key}.{ours}={theirs} takes the place of the rows' own column {ours}, which is not read."
            for ours, theirs in self.columns
            if theirs not in (None, ours) and ours in seen and ours not in used
        ]


NO_RENAMING = Renaming()


def is_pre_tokenised(name: str) -> bool:
    """Whether a column is one of the released pre-tokenised rows'."""
    return _RELEASED.fullmatch(name) is not None


@dataclass(frozen=True)
class _Wanted:
    """Whether a column of a table is read, under the rows' names."""

    ours: frozenset[str]
    theirs: frozenset[str]

    def __call__(self, name: str) -> bool:
        if name in self.theirs:
            return True
        if name in self.ours:
            return False
        named = name in _READ or is_pre_tokenised(name)
        return named or may_be(name, "prompt") or is_score(name)  # the last two say what is wrong with a row


def check_no_media(row: RawRow) -> None:
    """Refuses a row with images, sound or films: trained on its text alone, it would mean something else.

    Raises:
        RowError: one of those columns holds something.
    """
    for name in ("images", "image", "videos", "audios"):
        value = row.values.get(name)
        if value is not None and value not in ([], "", {}):
            raise RowError(
                row.source,
                f"column {name} is no text, and only text is read: data.columns={{{name}: null}} trains on the "
                "text alone.",
                reason=faults.NOT_TEXT,
            )
