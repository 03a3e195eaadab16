"""Commands from Python: `align.train("method=dpo", data=rows)` does what `align train method=dpo data.path=…` does."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from omegaconf import DictConfig, OmegaConf, open_dict

from align.core.bars import dataset_bars_off
from align.core.config import check_shared
from align.core.errors import UserError
from align.core.files import cache_folder, writing_atomically
from align.runs.composition import compose_command
from align.runs.console import quiet_call
from align.runs.recipes import check_recipe
from align.runs.sentences import early_sentence, sentence

if TYPE_CHECKING:
    from datasets import Dataset

    Rows: TypeAlias = Iterable[Mapping[str, Any]] | Dataset
    Documents: TypeAlias = Iterable[str | Mapping[str, Any]] | Dataset

# What may be given as Python objects → the key that then names their file.
OBJECTS = {"data": "data.path", "eval_data": "data.eval_path", "documents": "pipeline.documents"}
LOGGED = ("evaluate", "synthesize", "train")  # commands that keep a log in their output folder


def make_callable(name: str) -> None:
    """Makes a command's module a function too: `align.train(…)` composes a configuration for `align.train.train`.

    Args:
        name: the module's `__name__`.
    """
    sys.modules[name].__class__ = CommandModule


class CommandModule(ModuleType):
    """A module `align.COMMAND` that can be called; `python -m align.COMMAND` is the same command."""

    def __call__(self, *overrides: str, config_dir: str | Path | None = None, **objects: Any) -> Any:
        """The command's typed result.

        Args:
            overrides: as on the command line: `"method=dpo"`, `"trainer.max_steps=100"`.
            config_dir: a folder of your own configuration files, as `--config-dir`.
            objects: `data`, `eval_data` (rows) or `documents` (texts, or rows with a `text`) in memory, as the
                command reads them: a list of dictionaries or a `datasets.Dataset`.

        Raises:
            UserError: in one sentence what is wrong and what to do.
        """
        command = self.__name__.rpartition(".")[2]
        work = getattr(self, command)
        check_overrides(command, overrides)
        config = compose(command, overrides, objects, config_dir=config_dir)
        check_shared(config)
        # `align plan` repeats its overrides in the command that it prints.
        repeats = "own" in inspect.signature(work).parameters
        with quiet_call(Path(config.output) / f"{command}.log" if command in LOGGED else None):
            return work(config, own=list(overrides)) if repeats else work(config)


def check_overrides(command: str, overrides: Iterable[Any]) -> None:
    """Refuses what is no override: rows by position, a flag of the command line.

    Raises:
        UserError: what to write instead.
    """
    for given in overrides:
        if not isinstance(given, str):
            raise UserError(
                f'align.{command} takes overrides as text ("seed=1") and rows by name (data=rows), '
                f"not a {type(given).__name__} by position."
            )
        if given.startswith("-"):
            raise UserError(
                f"{given} is a flag of the command line: from Python, config_dir= names a folder of your "
                "configuration, and a loop over calls is a sweep."
            )


def compose(
    command: str,
    overrides: Iterable[str],
    objects: Mapping[str, Any] | None = None,
    *,
    config_dir: str | Path | None = None,
) -> DictConfig:
    """The configuration that a command line with these overrides would have.

    Args:
        command: `train`, `evaluate`, …
        overrides: Hydra's.
        objects: rows or documents in memory by the names of `OBJECTS`; None is not given.
        config_dir: a folder of more configuration files.

    Raises:
        UserError: an unknown key, group or value; an object that the command does not take.
    """
    words = list(overrides)
    check_recipe(words)
    try:
        config = compose_command(command, words, config_dir=config_dir)
    except Exception as error:
        told = sentence(error, command=command, overrides=words) or early_sentence(error, overrides=words)
        if told is None:
            raise
        raise UserError(told) from error
    for name, value in (objects or {}).items():
        if value is not None:
            _check_given(name, words)
            _put(config, command, name, value)
    return config


def _check_given(name: str, overrides: Iterable[str]) -> None:
    """Refuses an object whose key is given too."""
    key = OBJECTS.get(name)
    if key is not None and any(word.lstrip("+").startswith(f"{key}=") for word in overrides):
        raise UserError(f"{name}= and {key}= are both given: keep one.")


def _put(config: DictConfig, command: str, name: str, value: Any) -> None:
    """Stores an object and sets the key that names its file."""
    takes = [each for each, key in OBJECTS.items() if OmegaConf.select(config, key, default=...) is not ...]
    if name not in takes:
        raise UserError(
            f"align.{command} takes overrides and {', '.join([*takes, 'config_dir'])}, not {name}."
        )
    group, key = OBJECTS[name].split(".")
    with open_dict(config):
        config[group][key] = str(store(value, what=name))


def store(rows: Rows | Documents, *, what: str = "data") -> Path:
    """A file of the rows, in a folder named by their content: equal rows are one file, and a run on them goes on.

    Args:
        rows: dictionaries (texts, for documents), or a `datasets.Dataset`.
        what: their name, for the file (a complaint says `data.jsonl:2`) and for messages.

    Returns:
        A JSON Lines file (of dictionaries) or a Parquet file (of a Dataset) in the cache folder.

    Raises:
        UserError: no rows; a row that is no mapping, or has a value that JSON does not know.
    """
    _check_rows(rows, what)
    folder = cache_folder() / "rows"
    if _is_dataset(rows):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as staging:
            written = Path(staging) / "rows.parquet"
            with dataset_bars_off():
                rows.to_parquet(str(written))
            with written.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
            target = folder / digest / f"{what}.parquet"
            target.parent.mkdir(exist_ok=True)
            if not target.is_file():  # rows are cached by the time at which their file was written
                written.rename(target)
            return target
    lines = list(_lines(rows, what))
    if not lines:
        raise UserError(f"{what} is empty: give at least one row.")
    content = hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass"))
    target = folder / content.hexdigest()[:32] / f"{what}.jsonl"
    if not target.is_file():
        with writing_atomically(target) as file:
            file.writelines(lines)
    return target


def _is_dataset(rows: Any) -> TypeGuard[Dataset]:
    """Whether it is a data set of `datasets`, which then has been imported."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(rows, library.Dataset)


def _check_rows(rows: Any, what: str) -> None:
    """Refuses what can be iterated and is no list of rows, and says how it becomes one."""
    if isinstance(rows, str | Path):
        key = OBJECTS.get(what)
        file = f"; a file is named by {key}=…" if key else ""
        one = f", {what}=[text]" if what == "documents" else ""
        read = (
            ""
            if key
            else f', as datasets.load_dataset("json", data_files={str(rows)!r}, split="train") reads it'
        )
        raise UserError(f"{what} is a {type(rows).__name__}, and has to be a list{one}{file}{read}.")
    if isinstance(rows, Mapping):
        splits = all(_is_dataset(value) for value in rows.values()) and bool(rows)
        such = (
            f"one of its splits, {what}=NAME[{next(iter(rows))!r}]"
            if splits
            else f"a list of them, {what}=[row]"
        )
        raise UserError(f"{what} is a {type(rows).__name__}: give {such}.")
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        raise UserError(f"{what} is a {type(rows).__name__}: give {what}=datasets.Dataset.from_pandas(…).")
    if not isinstance(rows, Iterable):
        raise UserError(f"{what} is a {type(rows).__name__}, and has to be a list of dictionaries.")
    if isinstance(rows, Sized) and len(rows) == 0:
        raise UserError(f"{what} is empty: give at least one row.")


def _lines(rows: Iterable[Any], what: str) -> Iterator[str]:
    for number, row in enumerate(rows, start=1):
        value = {"text": row} if isinstance(row, str) and what == "documents" else row
        if not isinstance(value, Mapping):
            raise UserError(f"{what}: entry {number} is a {type(row).__name__}, and has to be a dictionary.")
        try:
            yield json.dumps(dict(value), ensure_ascii=False) + "\n"
        except TypeError as error:
            raise UserError(f"{what}: entry {number} cannot be written as JSON ({error}).") from error
