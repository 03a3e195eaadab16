"""Checkpoints that can be trusted: sealed when complete, verified when read, torn ones passed over."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers.trainer_pt_utils import safe_globals

from align.core.errors import UserError
from align.core.files import write_json
from align.core.telling import is_first, tell
from align.runs.continuation import ROWS
from align.runs.folder import CONFIG_NAME, LOCAL, check_resume

SEAL = "seal.json"
PREFIX = "checkpoint-"
EARLIER = "earlier-"  # folders of checkpoints that a run begun anew has moved out of its way
# What is read as plain data or not at all, by its ending: configuration, weights, vocabularies, a model's own code
# (which only trust_remote_code runs). Every other file has to be tensors that torch has saved, whatever it is called.
_PLAIN = {
    *(
        ".json",
        ".jsonl",
        ".safetensors",
        ".txt",
        ".md",
        ".jinja",
        ".model",
        ".py",
        ".vocab",
        ".bpe",
        ".tiktoken",
    ),
    *(".yaml", ".yml", ".spm"),
}
_FINISHED = ("model", "results.json", "training.png")  # what a run leaves at its end
_LATEST = "latest"  # DeepSpeed's: the name of the folder that holds its states
# Classes of DeepSpeed's own that its checkpoints name.
_DEEPSPEED_STATE = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
logger = logging.getLogger(__name__)


def seal(folder: Path) -> None:
    """Writes the size and SHA-256 of every file in `folder` to its seal, by a rename, as the last act of a save."""
    paths = _files(folder)
    for path in paths:
        _flush(path)
    names = [str(path.relative_to(folder)) for path in paths]
    write_json(folder / SEAL, dict(zip(names, _digests(paths), strict=True)))
    problem = danger(folder)
    if problem is not None:
        logger.warning("%s can be exported, but no run will go on from it: %s.", folder, problem)


def defect(folder: Path) -> str | None:
    """Why the checkpoint cannot be trusted, in words; None for a good one."""
    try:
        files = dict(json.loads((folder / SEAL).read_text()))
    except FileNotFoundError:
        return "it was never completed"
    except (OSError, ValueError, TypeError) as error:
        return f"its seal cannot be read ({error})"
    if not files:
        return "its seal names no file"
    paths = [folder / name for name in files]
    for name, path in zip(files, paths, strict=True):
        if not path.is_file():
            return f"{name} is missing"
    for name, digest in zip(files, _digests(paths), strict=True):
        if digest != files[name]:
            return f"{name} is damaged"
    return danger(folder)


def danger(folder: Path) -> str | None:
    """What in a checkpoint could run code when it is read, in words; None for nothing.

    The seal is no protection from it: whoever writes files writes the seal as well.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink():
            return f"{name} is refused, because it is a link, which may lead anywhere"
        if not path.is_file() or path.suffix.lower() in _PLAIN:
            continue
        if path.name == _LATEST:
            if _leads_out(path):
                return f"{name} is refused, because it names no folder beside it"
        elif (code := foreign_code(path)) is not None:
            return f"{name} is refused, because it names {code}"
    return None


def _leads_out(path: Path) -> bool:
    """Whether DeepSpeed's pointer names something else than a folder beside it, whose files are inspected as well."""
    name = path.read_bytes().decode(errors="replace").strip()
    return name in ("", ".", "..") or "/" in name or "\\" in name or not (path.parent / name).is_dir()


def last_good(output: Path) -> Path | None:
    """The newest checkpoint below `output` that verifies; every newer one that does not is named in a warning."""
    for folder in reversed(checkpoints(output)):
        reason = defect(folder)
        if reason is None:
            return folder
        logger.warning("Passing over the checkpoint %s: %s.", folder, reason)
    return None


def checkpoints(output: Path) -> list[Path]:
    """Checkpoint folders below `output`, oldest first."""
    found = [
        path for path in output.glob(f"{PREFIX}*") if path.is_dir() and path.name[len(PREFIX) :].isdigit()
    ]
    return sorted(found, key=lambda path: int(path.name[len(PREFIX) :]))


def set_aside(output: Path) -> None:
    """Moves a finished or given-up run's checkpoints, policy and results out of the way of one that begins anew.

    They would be taken for the new run's: gone on from, exported, or kept in the place of its own. Only the process
    of rank 0 moves them, to `OUTPUT/earlier-N`, and says so.
    """
    old = [*checkpoints(output), *(output / name for name in _FINISHED if (output / name).exists())]
    if not old or not is_first():
        return
    number = next(n for n in itertools.count(1) if not (output / f"{EARLIER}{n}").exists())
    place = output / f"{EARLIER}{number}"
    place.mkdir()
    for name in (CONFIG_NAME, LOCAL, ROWS):  # by these they can still be exported, and gone on from elsewhere
        if (output / name).is_file():
            shutil.copy2(output / name, place / name)
    for folder in old:
        folder.rename(place / folder.name)
    tell(
        f"What an earlier run left in {output} ({', '.join(folder.name for folder in old)}) is kept in {place}."
    )


def agreed(answer: bool) -> bool:
    """What the process of rank 0 answers, for all processes of a launch."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return answer
    said = [answer]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def find_resume(output: Path, resume: str) -> Path | None:
    """The checkpoint to go on from.

    Args:
        output: the run's folder.
        resume: `auto` takes the last good one if there is any; `never` none; else a checkpoint's path.

    Raises:
        UserError: the named checkpoint is missing or damaged.
    """
    check_resume(resume)
    if resume == "never":
        return None
    if resume == "auto":
        return last_good(output)
    folder = Path(resume)
    reason = defect(folder)
    if reason is not None:
        raise UserError(
            f"resume={resume} cannot be used: {reason}; name another checkpoint, or use resume=auto."
        )
    return folder


def agree_resume(output: Path, resume: str, *, patience: float = 60.0) -> Path | None:
    """As `find_resume`, for all processes of a launch: the one of rank 0 looks and hashes, the others take its choice.

    Args:
        output, resume: as `find_resume`; the same for every process.
        patience: seconds in which a choice may come into view on another machine, whose file system may lag behind.

    Raises:
        UserError: as `find_resume`, on every process; the choice is not there, or not harmless, on another machine.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return find_resume(output, resume)
    said: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            found = find_resume(output, resume)
            said = [None if found is None else str(found), None]
        except UserError as error:
            said = [None, str(error)]
    dist.broadcast_object_list(said, src=0)
    chosen, problem = said
    if problem is not None:
        raise UserError(problem)
    if chosen is not None and dist.get_rank() > 0:
        _check_choice(Path(chosen), patience)
    return None if chosen is None else Path(chosen)


def _check_choice(folder: Path, patience: float) -> None:
    """Refuses what rank 0 has chosen where it cannot be read here; one process a machine looks at what is in it."""
    deadline = time.monotonic() + patience
    while not (folder / SEAL).is_file():
        if time.monotonic() > deadline:
            raise UserError(
                f"process {dist.get_rank()} does not find {folder}, from which process 0 goes on: output has to lie "
                "on a file system that all machines share."
            )
        time.sleep(min(1.0, patience / 10))
        if folder.parent.is_dir():
            os.listdir(folder.parent)  # a listing has a network's file system look again
    problem = danger(folder) if os.environ.get("LOCAL_RANK", "0") == "0" else None
    if problem is not None:
        raise UserError(f"{folder} cannot be used: {problem}.")


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name not in (SEAL, f".{SEAL}.tmp")
    )


def _digests(paths: Sequence[Path]) -> Iterator[dict[str, str | int]]:
    """Size and SHA-256 of every file, in order, several at a time: one core hashes about 1 GB a second."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(_digest, paths)


def _digest(path: Path) -> dict[str, str | int]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _flush(path: Path) -> None:
    """Puts the file on the disk itself, and not only in memory."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def foreign_code(path: Path) -> str | None:
    """What a file names that torch would not load as plain data; None for tensors that torch has saved.

    Resuming reads such files with `weights_only=True`, except DeepSpeed, which unpickles its own: its classes
    may be named, others not. The pickle is taken apart and never run; one outside of torch's archive, as
    torch.distributed.checkpoint writes (`.metadata`, `*.distcp`), is not taken apart.
    """
    try:
        with safe_globals():
            named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # whatever a file made for the purpose does to its reader, it is refused
        return "something other than tensors"
    foreign = sorted(name for name in named if name not in _DEEPSPEED_STATE)
    return ", ".join(foreign) or None
