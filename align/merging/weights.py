"""The tensors of a folder of safetensors: their names, shapes and types at once, their values one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from align.core.errors import UserError, first_line

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_WHOLE_NUMBERS = ("I64", "I32", "I16", "I8", "U8", "BOOL")
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in a file.

    Attributes:
        file: its name.
        shape: its sizes.
        dtype: safetensors' name of its type: `BF16`.
    """

    file: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_float(self) -> bool:
        """Whether it can be averaged."""
        return self.dtype in DTYPES


@dataclass(frozen=True)
class Weights:
    """A folder's tensors.

    Attributes:
        folder: of the files.
        tensors: name → where and what it is.
        given: what the user called it, for messages.
    """

    folder: Path
    tensors: Mapping[str, Stored]
    given: str


def read_headers(folder: Path, given: str) -> Weights:
    """Names, shapes and types of all tensors; reads no values.

    Raises:
        UserError: a file that cannot be read or that the index names and is not there; quantised weights.
    """
    tensors: dict[str, Stored] = {}
    for path in _files(folder, given):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    part = file.get_slice(name)
                    tensors[name] = Stored(path.name, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{given}: {path} cannot be read ({first_line(error)}): fetch it again."
            ) from error
    odd = next((name for name, own in tensors.items() if own.dtype not in (*DTYPES, *_WHOLE_NUMBERS)), None)
    if odd is not None:
        raise UserError(
            f"{given} stores {odd} as {tensors[odd].dtype}, which cannot be averaged: name the checkpoint that was "
            "quantised, in bfloat16 or float32."
        )
    return Weights(folder, tensors, given)


def _files(folder: Path, given: str) -> list[Path]:
    """The files of the model: those of its index where there is one."""
    index = folder / INDEX
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{given}: {index} cannot be read as an index of weights: restore it.") from error
    missing = [name for name in named if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{given}: {missing[0]} is not there, which {index.name} names: fetch it again.")
    return [folder / name for name in named]


@contextmanager
def opened(weights: Sequence[Weights]) -> Iterator[Readers]:
    """Within it their tensors can be read."""
    with ExitStack() as stack:
        yield Readers(weights, stack)


class Readers:
    """Reads tensors of several folders; a file stays open once it was read from."""

    def __init__(self, weights: Sequence[Weights], stack: ExitStack) -> None:
        self._weights, self._stack = weights, stack
        self._open: dict[Path, Any] = {}

    def of(self, which: int, name: str) -> torch.Tensor:
        """A tensor of one of the folders, as it is stored."""
        own = self._weights[which]
        path = own.folder / own.tensors[name].file
        if path not in self._open:
            self._open[path] = self._stack.enter_context(safe_open(path, framework="pt"))
        tensor: torch.Tensor = self._open[path].get_tensor(name)
        return tensor
