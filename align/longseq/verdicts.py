"""What was found out about an architecture, kept in the user's cache folder so that a second start costs nothing."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

import align
from align.core.errors import UserError
from align.core.files import cache_folder, write_json

EXACT, DIFFERS, REFUSED, UNPROVEN = "exact", "differs", "refused", "unproven"

# Of a configuration, what changes nothing of what a layer computes.
_NOT_IN_KEY = ("_name_or_path", "dtype", "transformers_version", "use_cache", "quantization_config")


@dataclass(frozen=True)
class Verdict:
    """Whether the shared-prefix forward computes what a model would.

    Attributes:
        kind: `exact`; `differs`: it runs, to other values; `refused`: it does not run; `unproven`: no small model of
            the class runs on a CPU, so that no values could be compared.
        sentence: for the user; empty where it is exact.
        loss: relative error of the loss, where both ways ran.
        gradient: the largest relative error of a gradient.
        dtype: that both ran in.
        notices: sentences for the user of what is exact and costs more than other layers.
    """

    kind: str
    sentence: str = ""
    loss: float | None = None
    gradient: float | None = None
    dtype: str = ""
    notices: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises the sentence where the model must not train.

        Raises:
            UserError: values that differ, or a model that does not run.
        """
        if self.kind in (DIFFERS, REFUSED):
            raise UserError(self.sentence)


def key_of(model_class: type[PreTrainedModel], config: PreTrainedConfig, adapter: Any) -> str | None:
    """32 hex digits of all that decides on a verdict; None for a class whose code cannot be told, as a notebook's.

    The configuration, what the adapter is set to, the versions of the libraries and the code of this package.
    """
    code = _code_of(model_class)
    if code is None:
        return None
    content = {
        "class": f"{model_class.__module__}.{model_class.__qualname__}",
        "code": code,
        "config": {name: value for name, value in config.to_dict().items() if name not in _NOT_IN_KEY},
        "adapter": adapter,
        "versions": [torch.__version__, transformers.__version__, peft.__version__, align.__version__],
        "code here": [_files_digest(Path(align.__path__[0]) / name) for name in ("longseq", "models")],
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def recall(key: str | None) -> Verdict | None:
    """The verdict under a key; None where there is none, or a damaged one."""
    if key is None:
        return None
    try:
        noted = json.loads(_place(key).read_text())
        return Verdict(**noted | {"notices": tuple(noted["notices"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None  # not known yet, or a damaged note: the architecture itself says


def remember(key: str | None, verdict: Verdict) -> None:
    """Keeps a verdict; processes that find out the same at the same time write the same."""
    if key is not None:
        write_json(_place(key), asdict(verdict))


def _place(key: str) -> Path:
    return cache_folder() / "architectures" / f"{key}.json"


def _code_of(model_class: type[PreTrainedModel]) -> str | None:
    """Empty for the library's own class, a digest of the folder for code from a repository, else None."""
    root = model_class.__module__.partition(".")[0]
    if root == "transformers":
        return ""
    return (
        _files_digest(Path(inspect.getfile(model_class)).parent) if root == "transformers_modules" else None
    )


def _files_digest(folder: Path) -> str:
    """Of the Python files in a folder, names and content."""
    state = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.glob("*.py")):
        state.update(path.name.encode())
        state.update(path.read_bytes())
    return state.hexdigest()
