"""What stands behind a path: raw rows of files, folders and the Hub, each with its place: `train.jsonl:17`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align.core.errors import UserError
from align.data.files import JsonLines, JsonList, Parquet, Saved
from align.data.files import RawRow as RawRow
from align.data.files import Source as Source
from align.data.settings import DataSettings

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SUFFIXES = (".jsonl", ".json", ".parquet")
HELD_OUT_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")


@dataclass(frozen=True)
class Sources:
    """What a path holds: the rows to train on and, where it names them itself, held-out rows.

    A source is a file or a data set that holds rows; `RawRow.source` is where one stands in it: `train.jsonl:17`.
    """

    train: tuple[Source, ...]
    held_out: tuple[Source, ...] = ()


def open_sources(path: str | None, *, key: str = "data.path") -> Sources:
    """What stands behind `data.path`: a file, a folder of files, a saved `datasets` folder or a Hub id.

    A split or a file named test, validation, valid, val, dev or eval holds held-out rows where there are
    others beside it. `FOLDER:SPLIT` and `HUB_ID:SPLIT` take one split of a data set and nothing else.

    Raises:
        UserError: nothing is there, or nothing that can be read; `key` names the setting.
    """
    path = check_place(path, key=key)
    place = Path(path).expanduser()
    if place.is_file():
        return Sources((_file_source(place, key),))
    if place.is_dir():
        return _folder_sources(place, key)
    name, _, split = path.partition(":")
    if split and Path(name).expanduser().is_dir():
        return _saved_sources(Path(name).expanduser(), split, key)
    return _hub_sources(name, split, key)


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
        _file_source(place, key)
    elif not (place.is_dir() or Path(name).expanduser().is_dir() or _is_hub_id(name)):
        raise UserError(f"{key}={path} does not exist.")
    return path


def check_row_paths(settings: DataSettings) -> None:
    """`check_place` for every key of the group `data` that names rows."""
    check_place(settings.path)
    if settings.eval_path is not None:
        check_place(settings.eval_path, key="data.eval_path")
    for i, entry in enumerate(settings.mix):
        check_place(entry.path, key=f"data.mix[{i}].path")


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and Path(name).suffix not in SUFFIXES


def count_rows(sources: Sequence[Source]) -> int:
    """Places for rows in all sources together."""
    return sum(source.count() for source in sources)


def read_rows(sources: Sequence[Source], start: int = 0, stop: int | None = None) -> Iterator[RawRow]:
    """Rows at places start … stop − 1 of all sources, one after the other; None reads to the end.

    Places 4 … 6 of two files with 5 rows each are the last row of the first and the first two of the second.
    """
    offset = 0
    for source in sources:
        count = source.count()
        last = count if stop is None else min(count, stop - offset)
        first = max(0, start - offset)
        if first < last:
            for place, name, values in source.read(first, last):
                yield RawRow(offset + place, name, values)
        offset += count


def _file_source(path: Path, key: str) -> Source:
    kinds: dict[str, Callable[[Path], Source]] = {".jsonl": JsonLines, ".json": JsonList, ".parquet": Parquet}
    if path.suffix not in kinds:
        raise UserError(f"{key}={path} has an unknown ending: use {', '.join(SUFFIXES)}.")
    if path.stat().st_size == 0:
        raise UserError(f"{key}={path} is empty.")
    return kinds[path.suffix](path)


def _folder_sources(folder: Path, key: str) -> Sources:
    if _is_saved(folder):
        return _saved_sources(folder, "", key)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise UserError(f"{key}={folder} holds no {', '.join(SUFFIXES)} file and no saved data set.")
    held_out = [path for path in files if re.split(r"[-_.]", path.stem)[0] in HELD_OUT_SPLITS]
    if len(held_out) == len(files):
        held_out = []
    return Sources(
        tuple(_file_source(path, key) for path in files if path not in held_out),
        tuple(_file_source(path, key) for path in held_out),
    )


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _saved_sources(folder: Path, split: str, key: str) -> Sources:
    """A folder that `datasets` has saved; `split` may be empty."""
    if not _is_saved(folder):
        raise UserError(f"{key}={folder}:{split} names a split, but {folder} is no saved data set.")
    from datasets import load_from_disk

    return _dataset_sources(load_from_disk(str(folder)), folder.name, split, key)


def _hub_sources(name: str, split: str, key: str) -> Sources:
    from datasets import load_dataset

    try:
        data = load_dataset(name)
    except Exception as error:  # network, authorisation, name, layout: each library layer has its own class
        reason = (
            str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        )
        raise UserError(
            f"{key}={name} is no file or folder here, and the Hub did not give it ({reason})."
        ) from error
    return _dataset_sources(data, name, split, key)


def _dataset_sources(data: Dataset | DatasetDict, name: str, split: str, key: str) -> Sources:
    """The splits of a data set as sources: the one that is asked for, else `train` with a held-out one beside it.

    Of the splits train, test and extra: train is trained on and test held out; `NAME:extra` takes extra alone.

    Args:
        data: what `datasets` gave.
        name: of the folder or on the Hub, for messages and places of rows.
        split: empty where none is asked for.
        key: the setting, for messages.
    """
    from datasets import Dataset

    splits = {} if isinstance(data, Dataset) else dict(data)
    if split and split not in splits:
        known = ", ".join(splits) or "none"
        raise UserError(f"{key}={name}:{split}: there is no split {split}; the data set has: {known}.")
    if isinstance(data, Dataset):
        return Sources((Saved(name, data),))
    train = split or _train_split(list(splits), name, key)
    others = () if split else [other for other in HELD_OUT_SPLITS if other in splits and other != train]
    held_out = tuple(Saved(f"{name}/{other}", splits[other]) for other in others[:1])
    return Sources((Saved(f"{name}/{train}", splits[train]),), held_out)


def _train_split(splits: Sequence[str], name: str, key: str) -> str:
    """`train`, or the only split that there is."""
    if "train" in splits:
        return "train"
    if len(splits) != 1:
        raise UserError(
            f"{key}={name} has the splits {', '.join(splits)} and none is called train: name one, {key}={name}:SPLIT."
        )
    return splits[0]
