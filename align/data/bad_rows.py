"""`data.bad_rows`: what is said of rows that cannot be used, and when they are too many to go on without them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from align.core.errors import UserError
from align.core.files import writing_atomically
from align.core.readable import counted
from align.data.faults import RowError

FILE = "dropped_rows.jsonl"  # in a run's folder: every row that was left out, with its place and why
_CURE = "data.bad_rows=drop leaves them out"


def stopped(bad: RowError, *, count: int | None = None, total: int | None = None) -> RowError:
    """The complaint of `data.bad_rows=stop` about the first bad row, with where all of them are listed.

    Args:
        bad: the first one.
        count: how many there are, where that is known.
        total: of how many rows.
    """
    sentence = str(bad).removeprefix(f"{bad.source}: ").rstrip(".")
    if count is None:
        known = "align inspect lists every such row"
    elif count == 1:
        known = f"the only such row of {total}"
    else:
        known = f"the first of {count} such rows of {total}, which align inspect lists"
    return RowError(bad.source, f"{sentence} ({known}; {_CURE}).", reason=bad.reason)


def reasons(bad: Sequence[RowError]) -> str:
    """Why, and how often: `too long 8, empty text 4`."""
    return ", ".join(
        f"{reason} {count}" for reason, count in Counter(row.reason for row in bad).most_common()
    )


def check_limit(place: str, bad: Sequence[RowError], *, usable: int, limit: float | None) -> None:
    """Refuses to go on where more rows cannot be used than `data.bad_rows_limit` allows.

    Args:
        place: what names the rows: `data.path=rows.jsonl`.
        bad: the rows that cannot be used.
        usable: how many of the same place can.
        limit: a share of all of them where it is below 1, else a number; None allows any.

    Raises:
        UserError: too many, or no row at all can be used.
    """
    if not bad:
        return
    total = len(bad) + usable
    said = f"{place}: {len(bad)} of {counted(total, 'row')} cannot be used ({reasons(bad)})"
    if not usable:
        raise UserError(f"{said}, which leaves none; the first is {bad[0]}")
    if limit is not None and len(bad) > (limit * total if limit < 1 else limit):
        raise UserError(
            f"{said}, more than data.bad_rows_limit={limit:g} allows: align inspect lists them, a higher limit "
            "leaves them out."
        )


def write_dropped(bad: Sequence[RowError], folder: Path) -> Path | None:
    """Lists the rows that were left out, as JSON Lines with `source`, `reason` and `sentence`.

    Args:
        bad: those rows.
        folder: of the run.

    Returns:
        the file; None where no row was left out, and then none from an earlier start stays.
    """
    path = folder / FILE
    if not bad:
        path.unlink(missing_ok=True)
        return None
    with writing_atomically(path) as file:
        for row in bad:
            sentence = str(row).removeprefix(f"{row.source}: ")
            line = {"source": row.source, "reason": row.reason, "sentence": sentence}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path
