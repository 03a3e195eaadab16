"""Checkpoints that can be trusted: sealed when complete, verified when read, torn ones passed over."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
from pathlib import Path

import torch
from transformers.trainer_pt_utils import safe_globals

from align.core.errors import UserError
from align.core.files import write_json
from align.runs.folder import check_resume

SEAL = "seal.json"
PREFIX = "checkpoint-"
_PICKLED = {".pt", ".pth", ".bin"}
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
    files = {str(path.relative_to(folder)): _digest(_flushed(path)) for path in _files(folder)}
    write_json(folder / SEAL, files)


def defect(folder: Path) -> str | None:
    """Why the checkpoint cannot be trusted, in words; None for a good one."""
    try:
        files = json.loads((folder / SEAL).read_text())
    except FileNotFoundError:
        return "it was never completed"
    except (OSError, ValueError) as error:
        return f"its seal cannot be read ({error})"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _digest(path) != expected:
            return f"{name} is damaged"
    for path in _files(folder):
        code = foreign_code(path) if path.suffix in _PICKLED else None
        if code is not None:
            return f"{path.relative_to(folder)} is refused, because it names {code}"
    return None


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


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name not in (SEAL, f".{SEAL}.tmp")
    )


def _digest(path: Path) -> dict[str, str | int]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _flushed(path: Path) -> Path:
    """The file, on the disk itself and not only in memory."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return path


def foreign_code(path: Path) -> str | None:
    """What a pickled file names that torch would not load as plain data; None where there is nothing.

    Resuming reads these files with `weights_only=True`, except DeepSpeed, which unpickles its own: its classes
    may be named, others not. The pickle is taken apart and never run.
    """
    try:
        with safe_globals():
            named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (ValueError, RuntimeError, pickle.UnpicklingError):
        return "something other than tensors"
    foreign = sorted(name for name in named if name not in _DEEPSPEED_STATE)
    return ", ".join(foreign) or None
