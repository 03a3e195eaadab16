"""One output folder, one configuration: what a run claims, a different run may not continue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from align.core.errors import UserError
from align.core.files import write_atomically, write_json
from align.core.moved import current_names
from align.core.telling import is_first, tell

CONFIG_NAME = "config.yaml"
ADAPTER = "adapter_config.json"  # in a folder of weights: they are a LoRA adapter's
SUMMARY = "summary.json"  # in a folder of `align evaluate`: scores with their intervals
LOCAL = "local_paths.json"  # in a run's folder: which values of its configuration are files or folders
RESUME = ("auto", "never")  # of `resume`, where no checkpoint can be named
SUITES = "suites"  # in a run's folder: answers of the suites that are asked in training
# What a run saves: of training, of `align evaluate` and of `align synthesize`.
_SAVED = (
    *("checkpoint-*", "earlier-*", "model", "results.json"),
    *("summary.json", "samples.jsonl", "train.jsonl", "work", "unselected"),
)
_BEGUN = ("before.json", "rows.json", "dropped_rows.jsonl")  # what a run of training leaves when it begins
_ABSENT = "(absent)"
# A key that one command's configuration has and the others' have not → the command.
_COMMANDS = {"pipeline": "synthesize", "suite": "evaluate", "objective": "train"}


def claim_output(
    output: str | Path, config: DictConfig | Mapping[str, Any], *, ignore: Sequence[str] = ()
) -> None:
    """Saves the resolved configuration in an unclaimed folder, or compares it with the one saved there.

    A folder whose run ended before it had saved anything is free for another configuration, and that is said.

    The comparison leaves out `output` itself, so that a moved or differently spelled folder goes on. In a
    distributed run only the process of rank 0 writes.

    Args:
        output: the run's folder; created where it does not exist.
        config: the composed configuration; interpolations are resolved here.
        ignore: dotted keys that may change between two starts of the same run, with all below them.

    Raises:
        UserError: the folder belongs to a run of another configuration (the keys that differ are named),
            or its saved configuration cannot be read.
    """
    path = Path(output) / CONFIG_NAME
    # What YAML gives back is compared with what YAML gives back: tuples and lists are the same there.
    wanted = yaml.safe_load(_as_yaml(config))
    if not path.is_file():
        if is_first():
            write_atomically(path, _as_yaml(config))
        return
    saved = read_config(path)
    differing = [key for key in _differing(saved, wanted) if not _covered(key, ("output", *ignore))]
    if differing and not has_saved(path.parent):
        _begin_anew(path, _as_yaml(config), output)
    elif differing and _command(saved) not in (None, _command(wanted)):
        raise UserError(
            f"output={output} holds what `align {_command(saved)}` has made: name another output folder."
        )
    elif differing:
        changes = ", ".join(f"{key} ({_value(saved, key)} → {_value(wanted, key)})" for key in differing)
        raise UserError(
            f"output={output} belongs to a run with another configuration: {changes}; "
            "set these keys back to continue it, or name another output folder."
        )


def _command(config: Mapping[str, Any]) -> str | None:
    """The command that a configuration is of; None where it does not tell."""
    return next((name for key, name in _COMMANDS.items() if key in config), None)


def has_saved(folder: Path) -> bool:
    """Whether a run has left something in its folder that is worth keeping: checkpoints, a policy, results, answers."""
    return any(
        not path.is_dir() or any(each.is_file() and each.stat().st_size for each in path.rglob("*"))
        for pattern in _SAVED
        for path in folder.glob(pattern)
    )


def _begin_anew(path: Path, text: str, output: str | Path) -> None:
    """Claims a folder whose run has saved nothing; what that run noted or measured at its start goes."""
    if not is_first():
        return
    for name in _BEGUN:
        (path.parent / name).unlink(missing_ok=True)
    shutil.rmtree(path.parent / SUITES, ignore_errors=True)
    write_atomically(path, text)
    tell(f"output={output} held a run with another configuration that had saved nothing: it is begun anew.")


def note_local_paths(output: Path, config: DictConfig) -> None:
    """Writes down which values of the configuration are files or folders here: elsewhere nothing would tell.

    `folder/model` may be a Hub id as well. Only the process of rank 0 writes.
    """
    if is_first():
        texts = _texts(OmegaConf.to_container(config, resolve=True))
        write_json(output / LOCAL, {"paths": sorted({text for text in texts if _exists(text)})})


def local_paths(run: Path, config: Mapping[str, Any]) -> set[str]:
    """Values of a run's configuration that name a file or folder, as far as can be told afterwards.

    By what was noted; besides by what lies here, and where the run was started if its folder is still its `output`.
    """
    try:
        noted = set(json.loads((run / LOCAL).read_text(encoding="utf-8"))["paths"])
    except (OSError, ValueError, KeyError, TypeError):  # of an older version, or damaged: the rest tells
        noted = set()
    places = [Path()]
    whole, tail = run.absolute().parts, Path(str(config.get("output", ""))).parts
    if tail and whole[-len(tail) :] == tail:
        places.append(Path(*whole[: -len(tail)]))
    return noted | {
        text for text in _texts(config) if any(_exists(text and str(place / text)) for place in places)
    }


def _texts(value: Any) -> Iterator[str]:
    """Every text in a configuration."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from _texts(entry)
    elif isinstance(value, str):
        yield value


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or a character that no name has
        return False


def check_resume(resume: str) -> None:
    """Refuses a `resume` that is neither one of `RESUME` nor a folder, which then is a checkpoint's."""
    if resume not in RESUME and not Path(resume).is_dir():
        raise UserError(f"resume={resume} is no folder: name a checkpoint, or use resume=auto.")


def find_policy(path: Path) -> tuple[Path, Path]:
    """The folder of a training run, and that of its weights or adapter.

    Args:
        path: the run, whose trained model is meant, or one of its checkpoints.

    Raises:
        UserError: no run of `align train`, or one that has not finished and no checkpoint of it was named.
    """
    is_run = (path / CONFIG_NAME).is_file()
    run, weights = (path, path / "model") if is_run else (path.parent, path)
    if not (run / CONFIG_NAME).is_file():
        raise UserError(f"path={path} is no run of `align train`: it has no {CONFIG_NAME}, nor its parent.")
    if not any((weights / name).is_file() for name in (ADAPTER, "config.json")):
        raise UserError(
            f"path={path} holds no finished policy: let the run end, or name a checkpoint, path={run}/checkpoint-N."
        )
    return run, weights


def _as_yaml(config: DictConfig | Mapping[str, Any]) -> str:
    node = config if OmegaConf.is_config(config) else OmegaConf.create(dict(config))
    return OmegaConf.to_yaml(node, resolve=True)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration that a run has left in its folder.

    Raises:
        UserError: the file is no YAML, or holds no mapping.
    """
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as YAML: restore it, or name another output folder."
        ) from error
    if not isinstance(saved, dict):
        raise UserError(f"{path} holds no configuration: restore it, or name another output folder.")
    return saved


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is no mapping; an empty mapping is a value."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{key}.")
        else:
            yield key, value


def _differing(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    old, new = dict(leaves(saved)), dict(leaves(wanted))
    return [key for key in {**old, **new} if not _same(key, old.get(key, _ABSENT), new.get(key, _ABSENT))]


def _same(key: str, old: Any, new: Any) -> bool:
    """Whether two values are one; a target may have been written down before its module moved."""
    moved = key.rpartition(".")[2] == "_target_" and isinstance(old, str) and new in current_names(old)
    return bool(old == new or moved)


def _covered(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _value(config: Mapping[str, Any], key: str) -> str:
    value = dict(leaves(config)).get(key, _ABSENT)
    return "null" if value is None else str(value)
