"""Folders of rows: which of their files hold rows, and which of those are held out."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from align.core.errors import AlignWarning, UserError
from align.data.files import ROW_SUFFIXES, TEXTS, suffix_of

HELD_OUT_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")
# What `datasets`, the Hub and our own commands leave beside rows.
_NO_ROWS = (
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
)
_SHARD = re.compile(r"[-_.]\d+(?:-of-\d+)?$")  # test-00000-of-00003
# Files of one call each, and the rows of a folder that `align synthesize` has written.
_WORK, _MADE, _SUMMARY = "work", "train.jsonl", "summary.json"


def row_files(folder: Path, key: str) -> tuple[list[Path], list[Path]]:
    """The files of a folder that hold rows to train on, and those that hold rows to hold out.

    Left out are hidden files, what `datasets` and the Hub leave beside rows, and the calls that `align synthesize`
    keeps in `work`. A file is held out where its name is test, validation, valid, val, dev or eval (or
    `test-00000-of-00002`), or where the same name with train in that place stands beside it: `test_prefs.parquet`
    beside `train_prefs.parquet`. Text files hold documents where the folder has nothing else that holds rows: beside
    rows they are notes about them.

    Raises:
        UserError: none holds rows.
    """
    made = (folder / _MADE).is_file() and (folder / _SUMMARY).is_file()
    files = sorted(
        path
        for path in folder.rglob("*")
        if suffix_of(path)
        and path.is_file()
        and path.name not in _NO_ROWS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (made and path.relative_to(folder).parts[0] in (_WORK, _SUMMARY))
    )
    files = [path for path in files if suffix_of(path) not in TEXTS] or files
    if not files:
        raise UserError(f"{key}={folder} holds no {', '.join(ROW_SUFFIXES)} file and no saved data set.")
    names = {_stem(path) for path in files}
    held_out = [path for path in files if _is_held_out(_stem(path), names)]
    if len(held_out) == len(files):
        held_out = []
    chosen = set(held_out)
    train = [path for path in files if path not in chosen]
    _tell_alike(folder, train, key)
    return train, held_out


def _stem(path: Path) -> str:
    """The name without its ending and the number of its shard."""
    return _SHARD.sub("", path.name[: -len(suffix_of(path))])


def _first_word(stem: str) -> tuple[str, str]:
    word = re.split(r"[-_.]", stem, maxsplit=1)[0]
    return word, stem[len(word) :]


def _is_held_out(stem: str, names: set[str]) -> bool:
    word, rest = _first_word(stem)
    return word in HELD_OUT_SPLITS and (not rest or f"train{rest}" in names)


def _tell_alike(folder: Path, train: Sequence[Path], key: str) -> None:
    """Says which files are trained on although their names begin like those of held-out rows."""
    alike = [path.name for path in train if _first_word(_stem(path))[0] in HELD_OUT_SPLITS]
    if alike and len(alike) < len(train):
        shown = f"{', '.join(alike[:3])}{' …' if len(alike) > 3 else ''} {'is' if len(alike) == 1 else 'are'}"
        warnings.warn(
            f"{key}={folder}: {shown} trained on, since no file of the same name with train in that place stands "
            "beside: name held-out rows with data.eval_path.",
            AlignWarning,
            stacklevel=2,
        )


def is_saved(folder: Path) -> bool:
    """Whether `datasets` has saved a data set there."""
    if (folder / "dataset_dict.json").is_file():
        return True
    state = folder / "state.json"
    try:
        return state.is_file() and "_data_files" in json.loads(state.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False
