"""What an entry of `models` names: looked at without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from align.core.errors import UserError
from align.models.paths import check_path
from align.models.settings import EMBEDDED
from align.runs.folder import ADAPTER, CONFIG_NAME, find_policy

Kind = Literal["model", "run", "adapter"]


@dataclass(frozen=True)
class Place:
    """An entry of `models`, or `base`.

    Attributes:
        given: as it was given.
        key: what it was given for, for messages: `models[0]`, `base`.
        kind: `model`: a folder, a Hub id or `embedded`; `run`: of `align train`, or one of its checkpoints; `adapter`:
            a folder with an adapter and no run around it.
        path: the folder or Hub id.
        revision: of a Hub id given as `owner/name@revision`.
    """

    given: str
    key: str
    kind: Kind
    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.key}={self.given}"


def find_place(given: str, key: str) -> Place:
    """The place, as far as names tell; asks neither the Hub nor torch.

    Raises:
        UserError: nothing is there that could be merged, or its weights are in pickle files alone.
    """
    folder = Path(given).expanduser()
    if given != EMBEDDED and folder.is_dir():
        kind = _kind(folder)
        weights = find_policy(folder)[1] if kind == "run" else folder
        if kind == "model":
            check_path(str(folder), key=key)
        _check_safetensors(weights, f"{key}={given}")
        return Place(given, key, kind, str(folder))
    path, _, revision = given.partition("@")
    check_path(path if revision else given, key=key)
    return Place(given, key, "model", path if revision else given, revision or None)


def _kind(folder: Path) -> Kind:
    """What a folder holds; `RUN/model` and `RUN/checkpoint-N` belong to their run."""
    in_run = folder.name == "model" or folder.name.startswith("checkpoint-")
    if (folder / CONFIG_NAME).is_file() or (in_run and (folder.parent / CONFIG_NAME).is_file()):
        return "run"
    return "adapter" if (folder / ADAPTER).is_file() else "model"


def _check_safetensors(folder: Path, given: str) -> None:
    """Refuses weights that only unpickling could read, which runs what the file says; and a folder without any."""
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")):
        raise UserError(
            f"{given} has its weights in pickle files (*.bin) alone, which are not read tensor by tensor: load it and "
            "save it with the installed transformers, which writes safetensors, and name that folder."
        )
    raise UserError(f"{given} has no weights (*.safetensors): name the folder that has them.")
