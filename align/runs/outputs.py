"""Where a command writes: nothing that it reads, and nothing that is there and is not its own, is written over.

All of it is looked at before any work, so that a slip costs neither a file nor an hour.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from align.core.errors import UserError
from align.runs.folder import CONFIG_NAME, read_config

# Keys that the configuration of every command with a folder of its own has; they tell it from others' files.
_CLAIM = ("output", "seed", "resume")
# What may lie in a folder before a run begins in it: what the shell, a scheduler, Hydra or our own launcher leaves.
_LOGS = (".log", ".out", ".err")
_BESIDE = ("failed.txt", "launch.yaml", "multirun.yaml", "lost+found")
_FOLDERS = ("path", "eval_path", "paths", "documents")  # last words of keys whose folders are read whole
_SMALL = 16 * 2**20  # bytes; a file that a command has written to be read by people is not larger


def asked_file(config: DictConfig, key: str, own: Callable[[Path], bool]) -> Path | None:
    """The file that a key of a command names, see `output_file`; None where it is null.

    Args:
        config: the command's, whose other keys may name files that it reads.
        key: of the top level.
        own: as in `output_file`.
    """
    inputs: Any = OmegaConf.to_container(config, resolve=True)
    value = inputs.pop(key)
    return None if value is None else output_file(key, value, inputs=inputs, own=own)


def output_file(key: str, value: Any, *, inputs: Any, own: Callable[[Path], bool]) -> Path:
    """The file that a key names, if it may be written.

    Args:
        key: its name, for messages.
        value: what it was set to.
        inputs: configuration whose texts may name files that are read, at any depth.
        own: whether a file is the command's own earlier output, which is written anew.

    Raises:
        UserError: no name, a folder, an input, somebody else's file, or a place that cannot be written.
    """
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"{key}={_shown(value)} names no file: give a path, {key}=FILE, or leave it out.")
    path = Path(str(value)).expanduser()
    if path.is_dir():
        raise UserError(f"{key}={value} is a folder: name a file, {key}={path / 'FILE'}.")
    for text in _texts(inputs):
        if _same(path, Path(text).expanduser()):
            raise UserError(
                f"{key}={value} is a file that this command reads, and would be written over: name another."
            )
    for text in _named(inputs):
        if text and Path(text).expanduser().is_dir() and _lies_in(path, Path(text).expanduser()):
            raise UserError(
                f"{key}={value} lies in {text}, whose files this command reads: name a place outside of it."
            )
    check_own(key, path, own)
    _check_place(f"{key}={value}", path.parent)
    return path


def check_own(key: str, path: Path, own: Callable[[Path], bool]) -> None:
    """Refuses a file that is there, holds something, and is not what the command itself has written.

    Args:
        key: that names the file, for messages.
        path: the file.
        own: whether it is the command's own.
    """
    if path.exists() and not (path.is_file() and (path.stat().st_size == 0 or own(path))):
        raise UserError(
            f"{key}: {path} is there and was not written by this command: move it away, or name another."
        )


def is_json_lines(path: Path, fields: Iterable[str]) -> bool:
    """Whether every line of a file is a JSON object with just these fields."""
    wanted = set(fields)
    try:
        with path.open(encoding="utf-8") as lines:
            return all(_has_fields(line, wanted) for line in lines)
    except (OSError, UnicodeDecodeError):
        return False


def is_json(path: Path, fields: Iterable[str]) -> bool:
    """Whether a file is one JSON object with just these fields."""
    try:
        return path.stat().st_size < _SMALL and _has_fields(path.read_text(encoding="utf-8"), set(fields))
    except (OSError, UnicodeDecodeError):
        return False


def begins_with(path: Path, text: str) -> bool:
    """Whether a file has these first characters."""
    with path.open("rb") as file:
        return file.read(len(text.encode())) == text.encode()


def check_folder(output: Any) -> None:
    """Refuses an output folder that holds something and no run of ours: its files would be mixed with the run's.

    Raises:
        UserError: no name, such a folder, or a place where no folder can be made.
    """
    if not str(output).strip():
        raise UserError("output= names no folder: give one, output=outputs/NAME, or leave it out.")
    folder = Path(str(output))
    foreign = _foreign(folder)
    if foreign:
        raise UserError(
            f"output={output} is there and holds no run of this command, but {_some(foreign)}: name a new folder."
        )
    _check_place(f"output={output}", folder)


def holds_others(folder: Path) -> bool:
    """Whether a folder holds something that no run of ours has written, so that nothing may be put beside it."""
    try:
        return bool(_foreign(folder))
    except UserError:  # a record that cannot be read: whose it is cannot be told
        return True


def _foreign(folder: Path) -> list[str]:
    """The names of what a folder holds beside logs and hidden files where no run has claimed it; as `_is_ours`."""
    if not folder.is_dir() or _is_ours(folder):
        return []
    return sorted(path.name for path in folder.iterdir() if _is_foreign(path))


def _is_ours(folder: Path) -> bool:
    """Whether a run has claimed the folder.

    Raises:
        UserError: its record cannot be read.
    """
    if any(path.is_dir() and path.name[len("round-") :].isdigit() for path in folder.glob("round-*")):
        return True
    record = folder / CONFIG_NAME
    return record.is_file() and all(key in read_config(record) for key in _CLAIM)


def _is_foreign(path: Path) -> bool:
    """Whether something in a folder that nobody has claimed is more than a log or a hidden file."""
    return not (path.name.startswith(".") or path.suffix in _LOGS or path.name in _BESIDE)


def _check_place(given: str, folder: Path) -> None:
    """Refuses a folder that is not there and cannot be made, or in which nothing may be written."""
    nearest = next((each for each in (folder, *folder.absolute().parents) if each.exists()), Path("/"))
    if not nearest.is_dir():
        raise UserError(f"{given} cannot be written: {nearest} is a file, not a folder; name another place.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{given} cannot be written: you may not write in {nearest}; name another place.")


def _has_fields(text: str, wanted: set[str]) -> bool:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and set(found) == wanted


def _texts(value: Any) -> Iterator[str]:
    """Every text in plain or composed configuration."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _named(value: Any, key: str = "") -> Iterator[str]:
    """The texts that stand under keys of `_FOLDERS`, at any depth."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _named(each, str(name))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _named(each, key)
    elif isinstance(value, str) and key in _FOLDERS:
        yield value


def _lies_in(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _same(path: Path, other: Path) -> bool:
    """Whether two names are of one file that is there, or of one that is not."""
    try:
        return (
            path.samefile(other) if other.exists() and path.exists() else path.absolute() == other.absolute()
        )
    except (OSError, ValueError):  # no name that a file can have
        return False


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
