"""What stands behind a path: raw rows of files, folders and the Hub, each with its place: `train.jsonl:17`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.core.errors import UserError
from align.data.faults import RowError
from align.data.files import SUFFIXES as SUFFIXES
from align.data.files import RawRow as RawRow
from align.data.files import Source as Source
from align.data.files import file_source, suffix_of
from align.data.folders import is_saved, row_files
from align.data.hub import hub_sources, saved_sources
from align.data.settings import DataSettings
from align.data.table_files import Wanted


@dataclass(frozen=True)
class Sources:
    """What a path holds: the rows to train on and, where it names them itself, held-out rows.

    A source is a file or a data set that holds rows; `RawRow.source` is where one stands in it: `train.jsonl:17`.
    """

    train: tuple[Source, ...]
    held_out: tuple[Source, ...] = ()


def open_sources(path: str | None, *, key: str = "data.path", wanted: Wanted = None) -> Sources:
    """What stands behind `data.path`: a file, a folder of files, a saved `datasets` folder or a Hub id.

    A split or a file named test, validation, valid, val, dev or eval holds held-out rows where there are
    others beside it. `FOLDER:SPLIT`, `HUB_ID:SPLIT` and `HUB_ID:SUBSET:SPLIT` take one split of a data set and
    nothing else, `HUB_ID:SUBSET` a subset.

    Args:
        path: as the setting has it.
        key: the setting, for messages.
        wanted: which columns are read, where rows can be read by columns; None reads all.

    Raises:
        UserError: nothing is there, or nothing that can be read.
    """
    path = check_place(path, key=key)
    place = Path(path).expanduser()
    if place.is_file():
        return Sources((file_source(place, key, wanted),))
    if place.is_dir():
        if is_saved(place):
            return Sources(*saved_sources(place, "", key, wanted))
        train, held_out = row_files(place, key)
        return Sources(
            tuple(file_source(file, key, wanted, folder=place) for file in train),
            tuple(file_source(file, key, wanted, folder=place) for file in held_out),
        )
    name, _, split = path.partition(":")
    if split and Path(name).expanduser().is_dir():
        return Sources(*saved_sources(Path(name).expanduser(), split, key, wanted))
    return Sources(*hub_sources(name, split, key, wanted))


def check_place(path: str | None, *, key: str = "data.path") -> str:
    """`path`, if a file, a folder or a Hub id can be meant; reads no rows and asks no Hub.

    Raises:
        UserError: not set, a file of an unknown ending or an empty one, or nothing of that name.
    """
    if not path:
        raise UserError(f"{key} is not set: name a file, a folder or a Hub id with {key}=….")
    place = Path(path).expanduser()
    name = path.partition(":")[0]
    if place.is_file():
        file_source(place, key)
    elif not (place.is_dir() or Path(name).expanduser().is_dir()):
        _check_hub_id(path, name, key)
    return path


def check_row_paths(settings: DataSettings) -> None:
    """`check_place` for every key of the group `data` that names rows."""
    check_place(settings.path)
    if settings.eval_path is not None:
        check_place(settings.eval_path, key="data.eval_path")
    for i, entry in enumerate(settings.mix):
        check_place(entry.path, key=f"data.mix[{i}].path")


def _check_hub_id(path: str, name: str, key: str) -> None:
    """Refuses what is no Hub id, and what looks like a path: one whose first folder is here."""
    near = _near(Path(name).expanduser())
    hint = f" (did you mean {near}?)" if near else ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None or suffix_of(name):
        raise UserError(f"{key}={path} does not exist{hint}.")
    owner = name.partition("/")[0]
    if ":" not in path and (Path(owner).is_dir() or near):
        raise UserError(
            f"{key}={path} does not exist{hint}: it was looked for here, where there is a folder {owner}; a data set "
            f"of that name on the Hub is named with its split, {key}={name}:train."
        )


def _near(place: Path) -> str | None:
    """What is there under nearly the same name: `rows.jsonl` for `row`."""
    try:
        names = [each.name for each in place.parent.iterdir() if each.is_dir() or suffix_of(each)]
    except OSError:
        return None
    known = {name[: -len(suffix_of(name))] if suffix_of(name) else name: name for name in names} | {
        name: name for name in names
    }
    close = difflib.get_close_matches(place.name, known, n=1, cutoff=0.75)
    return str(place.with_name(known[close[0]])) if close else None


def count_rows(sources: Sequence[Source]) -> int:
    """Places for rows in all sources together."""
    return sum(source.count() for source in sources)


def read_places(
    sources: Sequence[Source], start: int = 0, stop: int | None = None
) -> Iterator[RawRow | RowError]:
    """Rows at places start … stop − 1 of all sources, one after the other; one that cannot be read is a `RowError`.

    Places 4 … 6 of two files with 5 rows each are the last row of the first and the first two of the second. Sources
    are counted only where their rows do not begin at 0 or do not end at the end.
    """
    offset = 0
    for source in sources:
        if start <= offset and stop is None:
            places = source.read(0)
        else:
            count = source.count()
            last = count if stop is None else min(count, stop - offset)
            first = max(0, start - offset)
            places = source.read(first, last) if first < last else iter(())
        for place, name, values in places:
            yield values if isinstance(values, RowError) else RawRow(offset + place, name, values)
        if source is not sources[-1]:
            offset += source.count()


def read_rows(sources: Sequence[Source], start: int = 0, stop: int | None = None) -> Iterator[RawRow]:
    """As `read_places`, for who can use no row less.

    Raises:
        RowError: a row cannot be read.
    """
    for row in read_places(sources, start, stop):
        if isinstance(row, RowError):
            raise row
        yield row
