"""Commands from Python: `align.train("method=dpo", data=rows)` does what `align train method=dpo data.path=…` does."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from omegaconf import DictConfig, open_dict

from align.core.errors import UserError
from align.core.files import cache_folder, writing_atomically
from align.runs.command import sentence

if TYPE_CHECKING:
    from datasets import Dataset

    Rows: TypeAlias = Iterable[Mapping[str, Any]] | Dataset
    Documents: TypeAlias = Iterable[str | Mapping[str, Any]] | Dataset

# What may be given as Python objects → the key that then names their file.
OBJECTS = {"data": "data.path", "eval_data": "data.eval_path", "documents": "pipeline.documents"}


def make_callable(name: str) -> None:
    """Makes a command's module a function too: `align.train(…)` composes a configuration for `align.train.train`.

    Args:
        name: the module's `__name__`.
    """
    sys.modules[name].__class__ = CommandModule


class CommandModule(ModuleType):
    """A module `align.COMMAND` that can be called; `python -m align.COMMAND` is the same command."""

    def __call__(self, *overrides: str, **objects: Any) -> Any:
        """The command's typed result.

        Args:
            overrides: as on the command line: `"method=dpo"`, `"trainer.max_steps=100"`.
            objects: rows or documents in memory, see `OBJECTS`: dictionaries or a `datasets.Dataset`.

        Raises:
            UserError: in one sentence what is wrong and what to do.
        """
        command = self.__name__.rpartition(".")[2]
        work = getattr(self, command)
        config = compose(command, overrides, objects)
        # `align plan` repeats its overrides in the command that it prints.
        repeats = "own" in inspect.signature(work).parameters
        return work(config, own=list(overrides)) if repeats else work(config)


def compose(command: str, overrides: Iterable[str], objects: Mapping[str, Any] | None = None) -> DictConfig:
    """The configuration that a command line with these overrides would have.

    Args:
        command: `train`, `evaluate`, …
        overrides: Hydra's.
        objects: rows or documents in memory by the names of `OBJECTS`; None is not given.

    Raises:
        UserError: an unknown key, group or value; an object that the command does not take.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    try:
        with _own_hydra(), initialize_config_module("hydra_conf", version_base="1.3"):
            config = hydra_compose(command, overrides=list(overrides))
    except Exception as error:
        told = sentence(error)
        if told is None:
            raise
        raise UserError(told) from error
    for name, value in (objects or {}).items():
        if value is not None:
            _put(config, command, name, value)
    return config


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Within it Hydra is as if nobody had used it: a notebook may have, for a program of its own."""
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before


def _put(config: DictConfig, command: str, name: str, value: Any) -> None:
    """Stores an object and sets the key that names its file."""
    if name not in OBJECTS:
        raise UserError(f"align.{command} takes overrides and {', '.join(OBJECTS)}, not {name}.")
    group, key = OBJECTS[name].split(".")
    if group not in config or key not in config[group]:
        raise UserError(f"align.{command} has no key {group}.{key}, so that it takes no {name}.")
    with open_dict(config):
        config[group][key] = str(store(value, what=name))


def store(rows: Rows | Documents, *, what: str = "data") -> Path:
    """A file of the rows, named by their content: equal rows are one file, and a run on them goes on.

    Args:
        rows: dictionaries (texts, for documents), or a `datasets.Dataset`.
        what: their name, for messages.

    Returns:
        A JSON Lines file (of dictionaries) or a Parquet file (of a Dataset) in the cache folder.

    Raises:
        UserError: a row that is no mapping, or has a value that JSON does not know.
    """
    folder = cache_folder() / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    if _is_dataset(rows):
        with tempfile.TemporaryDirectory(dir=folder) as staging:
            written = Path(staging) / "rows.parquet"
            rows.to_parquet(str(written))
            with written.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
            return written.rename(folder / f"{digest}.parquet")
    content = hashlib.sha256()
    lines = list(_lines(rows, what))
    for line in lines:
        content.update(line.encode("utf-8", "surrogatepass"))
    target = folder / f"{content.hexdigest()[:32]}.jsonl"
    if not target.is_file():
        with writing_atomically(target) as file:
            file.writelines(lines)
    return target


def _is_dataset(rows: Any) -> TypeGuard[Dataset]:
    """Whether it is a data set of `datasets`, which then has been imported."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(rows, library.Dataset)


def _lines(rows: Iterable[Any], what: str) -> Iterator[str]:
    for number, row in enumerate(rows, start=1):
        value = {"text": row} if isinstance(row, str) and what == "documents" else row
        if not isinstance(value, Mapping):
            raise UserError(f"{what}: entry {number} is a {type(row).__name__}, and has to be a dictionary.")
        try:
            yield json.dumps(dict(value), ensure_ascii=False) + "\n"
        except TypeError as error:
            raise UserError(f"{what}: entry {number} cannot be written as JSON ({error}).") from error
