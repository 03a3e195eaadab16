"""What tells one model from every other: weights, configuration, dtypes, attention, as a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from align.core.errors import UserError
from align.core.files import write_atomically
from align.models.loading import load_config
from align.models.paths import resolve_path
from align.models.precision import Precision
from align.models.rope import switches_by_length
from align.models.settings import LIBRARY
from align.patterns.layers import as_read

if TYPE_CHECKING:
    from align.models.settings import ModelSettings

# Part of every key: raise it when a change of the code changes the values.
VERSION = 2


# Keys of `model` that say where weights come from (their bytes count instead), or train and are not read.
_NOT_IN_KEY = (
    *("path", "revision", "trust_remote_code", "lora", "adapter", "rope", "query_scale", "dtype"),
    "layer_patterns",
)
# So that what a cache has been filled with before they were a key is found.
_ONLY_WHERE_SET = ("extra_tokens",)


# What every configuration of transformers has beside its architecture, and the cache of generation.
_NEUTRAL = {*PreTrainedConfig().to_dict(), "use_cache"} - {"model_type"}


@dataclass(frozen=True)
class Identity:
    """The function that gives reference log-probs.

    Attributes:
        content: everything that decides on it, in plain values.
        row_length_matters: the rotary embedding chooses its frequencies by the longest position of the packed row
            (LongRoPE with two unlike lists), which then belongs to a key.
    """

    content: Mapping[str, Any]
    row_length_matters: bool = False

    @classmethod
    def of(
        cls,
        settings: ModelSettings,
        *,
        precision: Precision,
        cache: Path,
        key: str = "reference.cache",
    ) -> Identity:
        """The identity of the model that `settings` load, adapters left out; reads files, loads no weights.

        Args:
            settings: of the reference.
            precision: what its forward computes in.
            cache: folder in which the hashes of weight files are remembered.
            key: of the configuration that asks, for messages.

        Raises:
            UserError: a folder without weights; a Hub model whose commit is not known.
        """
        config = load_config(settings)
        content = {
            "version": VERSION,
            "weights": weights_fingerprint(settings, config, cache, key=key),
            "config": architecture(config.to_dict()),
            "dtype": str(precision.weights_dtype(settings)),
            "autocast": str(precision.autocast),
            "settings": {
                name: value
                for name, value in asdict(settings).items()
                if name not in _NOT_IN_KEY and (value or name not in _ONLY_WHERE_SET)
            },
        }
        return cls(
            content,
            row_length_matters=switches_by_length(config) and settings.attention != LIBRARY,
        )

    @property
    def digest(self) -> str:
        """32 hex digits, of the model as it is read here and now (`patterns.layers.evaluating_patterns`)."""
        text = json.dumps(as_read(self.content), sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's plain values without those that every one has; of a composite its parts' too."""
    return {
        name: architecture(value) if isinstance(value, Mapping) and "model_type" in value else value
        for name, value in config.items()
        if name not in _NEUTRAL
    }


def weights_fingerprint(
    settings: ModelSettings, config: PreTrainedConfig, cache: Path, *, key: str = "reference.cache"
) -> str:
    """What stands for the weights: a Hub model's commit, or the SHA-256 of a folder's files.

    Files are read once (8B parameters in bf16 take a quarter of a minute) and then known by path, size and
    times in `cache/files`, so that a sweep does not read them again.
    """
    folder = Path(resolve_path(settings.path))
    if folder.is_dir():
        return _folder_fingerprint(folder, cache, key)
    commit = getattr(config, "_commit_hash", None)
    if commit is None:
        raise UserError(f"{key} cannot tell which commit of {settings.path} was loaded: name a local folder.")
    return f"commit {commit}"


def _folder_fingerprint(folder: Path, cache: Path, key: str) -> str:
    """The files that weights and code are read from, and those below an adapter."""
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise UserError(f"{key} finds no weights (*.safetensors, pytorch_model*.bin) in {folder}.")
    adapter = folder / "adapter_config.json"
    files = [*weights, *sorted(folder.glob("*.py")), *([adapter] if adapter.is_file() else [])]
    parts = [f"{path.name} {file_hash(path, cache)}" for path in files]
    if adapter.is_file():
        base = Path(json.loads(adapter.read_text()).get("base_model_name_or_path") or "")
        if base.is_dir() and base.resolve() != folder.resolve():
            parts.append(_folder_fingerprint(base, cache, key))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def file_hash(path: Path, cache: Path) -> str:
    """SHA-256 of a file, remembered in `cache/files` under its path, size and times.

    The time of the last status change is among them: it cannot be set back, unlike that of the content.
    """
    status = path.stat()
    known = [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    note = cache / "files" / f"{content_digest(json.dumps(known), ())}.json"
    try:
        remembered = json.loads(note.read_text())
        if remembered["file"] == known:
            return str(remembered["sha256"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # not known yet, or a damaged note: the file itself says
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    write_atomically(note, json.dumps({"file": known, "sha256": digest}))
    return digest


def parameters_digest(model: torch.nn.Module) -> str:
    """What stands for the weights that a model has in memory: 32 hex digits of every parameter's bits, summed.

    The sums are of integers, so that they come out the same on every device; a training step changes them.
    """
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        (name, int(parameter.detach().view(kinds[parameter.element_size()]).sum(dtype=torch.int64)))
        for name, parameter in model.named_parameters()
        if parameter.numel()
    ]
    return content_digest(json.dumps(sums), ())


def content_digest(text: str, arrays: tuple[np.ndarray, ...]) -> str:
    """32 hex digits of a text and arrays of integers, each with its length before it."""
    state = hashlib.blake2b(text.encode(), digest_size=16)
    for array in arrays:
        values = np.ascontiguousarray(array, dtype="<i8")
        state.update(np.array([len(values)], dtype="<i8").tobytes())
        state.update(values.tobytes())
    return state.hexdigest()
