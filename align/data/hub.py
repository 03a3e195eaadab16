"""Data sets of `datasets`, saved in a folder or on the Hub, as sources of rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.core.config import suggestion
from align.core.errors import UserError, first_line
from align.data.files import Source
from align.data.folders import HELD_OUT_SPLITS, is_saved
from align.data.table_files import Saved, Wanted

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

# Sources of the rows to train on, and of those to hold out.
TrainAndHeldOut = tuple[tuple[Source, ...], tuple[Source, ...]]


def saved_sources(folder: Path, split: str, key: str, wanted: Wanted) -> TrainAndHeldOut:
    """A folder that `datasets` has saved; `split` may be empty."""
    if not is_saved(folder):
        raise UserError(f"{key}={folder}:{split} names a split, but {folder} is no saved data set.")
    from datasets import load_from_disk

    try:
        data = load_from_disk(str(folder))
    except Exception as error:  # a damaged folder: each library layer has its own class
        raise UserError(
            f"{key}={folder} cannot be read as a saved data set ({first_line(error)})."
        ) from error
    return _dataset_sources(data, folder.name, split, key, wanted)


def hub_sources(name: str, rest: str, key: str, wanted: Wanted) -> TrainAndHeldOut:
    """A data set on the Hub.

    Args:
        name: its id.
        rest: what stands behind the id's colon: a split, a subset, a subset and its split (`SUBSET:SPLIT`), or nothing.
        key: the setting, for messages.
        wanted: see `Parquet`.

    Raises:
        UserError: the Hub does not give it; it has several subsets and none is named, or none of that name.
    """
    subset, colon, split = rest.partition(":")
    if colon:
        return _dataset_sources(_load(name, subset, key), f"{name}:{subset}", split, key, wanted)
    subsets = _subsets(name, key)
    if rest in subsets and len(subsets) > 1:
        return _dataset_sources(_load(name, rest, key), f"{name}:{rest}", "", key, wanted)
    if len(subsets) > 1 and "default" not in subsets:
        raise UserError(
            f"{key}={name} has the subsets {', '.join(subsets)}: name one, {key}={name}:SUBSET or "
            f"{key}={name}:SUBSET:SPLIT{suggestion(rest, subsets)}."
        )
    return _dataset_sources(_load(name, None, key), name, rest, key, wanted)


def _subsets(name: str, key: str) -> list[str]:
    from datasets import get_dataset_config_names

    try:
        return list(get_dataset_config_names(name))
    except Exception as error:  # network, authorisation, name, layout: each library layer has its own class
        raise _not_given(name, key, error) from error


def _load(name: str, subset: str | None, key: str) -> Dataset | DatasetDict:
    from datasets import load_dataset

    try:
        return load_dataset(name, subset)
    except Exception as error:  # as above
        shown = name if subset is None else f"{name}:{subset}"
        raise _not_given(shown, key, error) from error


def _not_given(name: str, key: str, error: Exception) -> UserError:
    return UserError(
        f"{key}={name} is no file or folder here, and the Hub did not give it ({first_line(error)})."
    )


def _dataset_sources(
    data: Dataset | DatasetDict, name: str, split: str, key: str, wanted: Wanted
) -> TrainAndHeldOut:
    """The splits of a data set as sources: the one that is asked for, else `train` with the held-out ones beside it.

    Of the splits train, test, validation and extra, train is trained on, test and validation are held out, as of a
    folder's files; `NAME:extra` takes extra alone.

    Args:
        data: what `datasets` gave.
        name: of the folder or on the Hub, for messages and places of rows.
        split: empty where none is asked for.
        key: the setting, for messages.
        wanted: which columns are read.
    """
    from datasets import Dataset

    splits = {} if isinstance(data, Dataset) else dict(data)
    if split and split not in splits:
        known = ", ".join(splits) or "none"
        raise UserError(f"{key}={name}:{split}: there is no split {split}; the data set has: {known}.")
    if isinstance(data, Dataset):
        return (Saved(name, data, wanted),), ()
    train = split or _train_split(list(splits), name, key)
    others = () if split else [other for other in HELD_OUT_SPLITS if other in splits and other != train]
    held_out = tuple(Saved(f"{name}/{other}", splits[other], wanted) for other in others)
    return (Saved(f"{name}/{train}", splits[train], wanted),), held_out


def _train_split(splits: Sequence[str], name: str, key: str) -> str:
    """`train`, or the only split that there is."""
    if "train" in splits:
        return "train"
    if len(splits) != 1:
        raise UserError(
            f"{key}={name} has the splits {', '.join(splits)} and none is called train: name one, {key}={name}:SPLIT."
        )
    return splits[0]
